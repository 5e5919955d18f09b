"""Runs that take hours, one line of JSON each: an interruption costs the runs that were under way.

A ledger belongs to one state of the code and the goldens; it refuses to go on with another, since a
rate over two of them would be a rate of neither.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from validation.execution import close_parents
from validation.files import digest
from validation.goldens.store import HEAD, GoldenStore
from validation.source import source_digest
from validation.verdict import jsonable

# Variables that the runs set themselves: around them the environment must be a plain one.
CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY")
# What is written here and how the gate is tested changes no run.
_NO_PART_OF_RUNS = ("benchmarks/", "tests/")


def state_of(root: Path, lane: str, cases: Iterable[str]) -> dict[str, Any]:
    """Digests of everything that decides the runs: the code, and the heads of the goldens."""
    store = GoldenStore(root / "goldens")
    heads = {case: digest((store.path(lane, case) / HEAD).read_bytes()) for case in sorted(cases)}
    return {"source": source_digest(root, without=_NO_PART_OF_RUNS), "goldens": heads}


def refuse_chosen_environment() -> None:
    """Ends the program where the user has set what the runs vary.

    Raises:
        SystemExit: a variable is set.
    """
    found = [name for name in CHOSEN if name in os.environ]
    if found:
        raise SystemExit(f"unset {', '.join(found)}: the runs choose it themselves")


class Ledger:
    """A file of JSON lines: first the state of the code, then what each run left.

    Args:
        path: of the file; its folder is made.
        state: see `state_of`.

    Raises:
        SystemExit: the file is of another state.
    """

    def __init__(self, path: Path, state: Mapping[str, Any]) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = read_lines(path)
        if lines and lines[0] != {"state": state}:
            raise SystemExit(
                f"{path}: made by other code or goldens than these; move it away to begin anew"
            )
        self.entries = lines[1:]
        whole = "".join(_line(entry) for entry in lines or [{"state": state}])
        if not path.exists() or path.read_text() != whole:  # new, or its last line is cut short
            path.write_text(whole)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Adds a line: whole, on disk, from any thread."""
        with self._lock, self.path.open("a") as stream:
            self.entries.append(dict(entry))
            stream.write(_line(entry))
            stream.flush()
            os.fsync(stream.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, up to a line that was cut short."""
    found: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(jsonable(entry), sort_keys=True, allow_nan=False) + "\n"


def in_parallel[Job](jobs: int, todo: Sequence[Job], work: Callable[[Job], None]) -> None:
    """Does the work in threads; an interruption ends what runs, and nothing of it is recorded.

    Args:
        jobs: threads.
        todo: in this order.
        work: runs and records one job; it must ask `interrupted()` before it records.
    """
    _ending.clear()
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
