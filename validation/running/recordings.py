"""The runs of a check: wide cases side by side, one to a core, the others one after another.

In wide arithmetic a run's records do not depend on how many threads it has, so that such cases can
share the cores. Any other case has the machine to itself, with the threads that the user gave it.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from validation.cases import Case
from validation.progress import Progress
from validation.running.execution import RunOptions, close_parents, run_case
from validation.running.reach import case_source_digest
from validation.running.threads import threads_of
from validation.trace import Trace

# Each run keeps an imported torch, and a model in fp64, in memory.
MOST_AT_ONCE = 4

Record = Callable[[Case, RunOptions, Path], Trace]
"""Runs a case, its output appended to a log."""


def record_case(
    case: Case,
    lane: str,
    root: Path,
    log: Path,
    provenance: Mapping[str, Any],
    options: RunOptions | None = None,
) -> Trace:
    """Runs a case and completes its trace's provenance.

    Args:
        case: what to run.
        lane: where it runs, unless `options` say so.
        root: the repository.
        log: appended with what the run prints.
        provenance: of the source, which all runs of a command share.
        options: how the run differs from the plain case.

    Returns:
        The trace.

    Raises:
        RunError: it left no trace.
    """
    source = case_source_digest(case, root)  # before the run, which may take long
    trace = run_case(case, options or RunOptions(lane=lane), root, log)
    own = {"case_digest": case.digest, "source_digest": source, **case.declared}
    return replace(trace, provenance={**provenance, **trace.provenance, **own})


@dataclass(frozen=True)
class Recording:
    """A run that has left its trace.

    Attributes:
        trace: what it left.
        seconds: how long it took.
    """

    trace: Trace
    seconds: float


class Recordings:
    """Makes the traces that a check compares.

    Args:
        options: how the cases run.
        log: receives what the runs print, run after run.
        record: makes one.
        progress: told when a run starts.
    """

    def __init__(self, options: RunOptions, log: Path, record: Record, progress: Progress) -> None:
        self._options, self._log, self._record, self._progress = options, log, record, progress
        self._cores = max(1, min(MOST_AT_ONCE, len(os.sched_getaffinity(0))))
        self._free = self._cores
        self._turn = threading.Condition()
        self._started: dict[str, Future[Recording]] = {}

    @contextmanager
    def ahead(self, cases: Sequence[Case]) -> Iterator[None]:
        """Starts the wide ones among these cases; inside, `of` waits for them."""
        wide = [case for case in cases if case.arithmetic == "wide"]
        if self._cores == 1 or len(wide) < 2:
            yield
            return
        pool = ThreadPoolExecutor(self._cores)
        try:
            for case in wide:
                self._started[case.name] = pool.submit(self._beside_others, case)
            yield
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            close_parents()  # so that the runs end now
            raise
        pool.shutdown()

    def of(self, case: Case) -> Recording:
        """Returns the run of a case: waits for one that was started, or makes it now.

        Args:
            case: what to run.

        Returns:
            The trace, and how long the run took.

        Raises:
            RunError: it left no trace.
        """
        started = self._started.get(case.name)
        if started is not None:
            return started.result()
        began = time.monotonic()
        self._progress.message(f"{case.name}: running")
        trace = self._record(case, self._options, self._log)
        recording = Recording(trace, time.monotonic() - began)
        kept: Future[Recording] = Future()
        self._started[case.name] = kept
        kept.set_result(recording)
        return recording

    def finished(self, case: str) -> Trace | None:
        """The trace of a case's run; None before there is one."""
        started = self._started.get(case)
        if started is None or not started.done() or started.exception() is not None:
            return None
        return started.result().trace

    def _beside_others(self, case: Case) -> Recording:
        threads = os.environ.get("OMP_NUM_THREADS", "1")
        asked = case.processes * (int(threads) if threads.isdigit() else 1)
        needed = max(1, min(self._cores, asked))
        log = self._log.with_name(f"log-{case.name}.txt")
        with self._cores_for(needed):
            began = time.monotonic()
            self._progress.message(f"{case.name}: running")
            options = replace(self._options, environment=threads_of(case, {}))
            try:
                trace = self._record(case, options, log)
            finally:
                self._collect(log)
        return Recording(trace, time.monotonic() - began)

    @contextmanager
    def _cores_for(self, needed: int) -> Iterator[None]:
        with self._turn:
            self._turn.wait_for(lambda: self._free >= needed)
            self._free -= needed
        try:
            yield
        finally:
            with self._turn:
                self._free += needed
                self._turn.notify_all()

    def _collect(self, log: Path) -> None:
        """Appends a run's own log to that of the check: runs side by side would mix their lines."""
        if log.exists():
            with self._turn, self._log.open("ab") as whole, log.open("rb") as own:
                shutil.copyfileobj(own, whole)
            log.unlink()
