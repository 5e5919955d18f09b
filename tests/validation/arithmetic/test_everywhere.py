"""A mode of the dispatcher in the threads and processes that start inside of it."""

import multiprocessing
import multiprocessing.process
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from validation.arithmetic import arithmetic


def kind_here() -> str:
    return type(_get_current_dispatch_mode()).__name__


# A process that starts afresh imports nothing of a test.
SEND_KIND = """
from torch.utils._python_dispatch import _get_current_dispatch_mode
queue.put(type(_get_current_dispatch_mode()).__name__)
"""


class Numbers(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[int, bool]:
        return index, kind_here() == "Wide"


class Overriding(multiprocessing.get_context("spawn").Process):  # type: ignore[name-defined,misc]
    def run(self) -> None:
        pass


class ThreadOfItsOwn(threading.Thread):
    kind = ""

    def run(self) -> None:
        self.kind = kind_here()


def test_threads_are_inside() -> None:
    own = ThreadOfItsOwn()
    with arithmetic("wide"), ThreadPoolExecutor(1) as pool:
        own.start()
        own.join()
        assert (own.kind, pool.submit(kind_here).result()) == ("Wide", "Wide")
    assert kind_here() == "NoneType"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_are_inside(method: str) -> None:
    context = multiprocessing.get_context(method)
    with arithmetic("wide"):
        queue = context.SimpleQueue()
        process = context.Process(target=exec, args=(SEND_KIND, {"queue": queue}))
        process.start()
        assert queue.get() == "Wide"
        process.join()


def test_workers_of_a_data_loader_are_inside() -> None:
    with arithmetic("wide"):
        loader = torch.utils.data.DataLoader(
            Numbers(), num_workers=1, multiprocessing_context="fork"
        )
        assert [bool(inside) for _, inside in loader] == [True, True]


def test_a_process_that_cannot_be_reached_is_refused_by_name() -> None:
    with arithmetic("wide"), pytest.raises(RuntimeError, match="Overriding overrides run"):
        Overriding().start()


def test_the_way_things_start_is_put_back() -> None:
    before = threading.Thread.start, multiprocessing.process.BaseProcess.start
    with pytest.raises(KeyError), arithmetic("wide"):
        raise KeyError
    assert (threading.Thread.start, multiprocessing.process.BaseProcess.start) == before
