"""What the long benchmarks share: their ledgers, a plain environment, and threads that end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from validation.execution import close_parents
from validation.power.ledger import Ledger, StateError

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

    Args:
        jobs: threads.
        todo: in this order.
        work: runs and records one job; it must ask `interrupted()` before it records.
    """
    _ending.clear()
    # The runs share the cores: a thread that waits must not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for _ in pool.map(work, todo):
                pass
        except BaseException:
            _ending.set()
            pool.shutdown(wait=False, cancel_futures=True)
            close_parents()
            raise


def interrupted() -> bool:
    """Whether the program is ending: a run that failed then says nothing about the code."""
    return _ending.is_set()


_ending = threading.Event()
