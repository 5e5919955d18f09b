"""What the long benchmarks share: their ledgers, a plain environment, and threads that end."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from validation.power.ledger import Ledger, StateError
from validation.running.execution import close_parents

# Variables that the runs set themselves: around them the environment must be a plain one.
CHOSEN = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ATEN_CPU_CAPABILITY",
)


def refuse_chosen_environment() -> None:
    """Ends the program where the user has set what the runs vary.

    Raises:
        SystemExit: a variable is set.
    """
    found = [name for name in CHOSEN if name in os.environ]
    if found:
        raise SystemExit(f"unset {', '.join(found)}: the runs choose it themselves")


def opened(path: Path, state: Mapping[str, Any]) -> Ledger:
    """The ledger at a path, new or begun.

    Raises:
        SystemExit: it is of another state of the code or the goldens.
    """
    try:
        return Ledger(path, state)
    except StateError as error:
        raise SystemExit(str(error)) from error


def in_parallel[Job](jobs: int, todo: Sequence[Job], work: Callable[[Job], None]) -> None:
    """Does the work in threads; an interruption ends what runs, and nothing of it is recorded.

    Each thread has its own share of the processor's cores, and so have the processes that it
    starts: without that, every one of them would use as many threads as there are cores.

    Args:
        jobs: threads, at most as many as there are cores.
        todo: in this order.
        work: runs and records one job; it must ask `interrupted()` before it records.
    """
    _ending.clear()
    # The runs share the cores: a thread that waits must not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    for share in core_shares(jobs):
        shares.put(share)
    with ThreadPoolExecutor(
        shares.qsize(), initializer=lambda: os.sched_setaffinity(0, shares.get())
    ) as pool:
        try:
            for _ in pool.map(work, todo):
                pass
        except BaseException:
            _ending.set()
            pool.shutdown(wait=False, cancel_futures=True)
            close_parents()
            raise


def core_shares(jobs: int) -> list[set[int]]:
    """The cores of this process in equal shares, one for each job; a rest is left idle."""
    cores = sorted(os.sched_getaffinity(0))
    size = max(1, len(cores) // jobs)
    return [set(cores[place : place + size]) for place in range(0, size * jobs, size)][: len(cores)]


def interrupted() -> bool:
    """Whether the program is ending: a run that failed then says nothing about the code."""
    return _ending.is_set()


_ending = threading.Event()
