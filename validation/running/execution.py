"""Runs a case: its processes, their environment, their log, and the trace they leave."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from validation.cases import Case
from validation.config import Lane, lane_of
from validation.files import DamagedFileError, encode_json, write_atomically
from validation.running.notes import merged
from validation.running.ports import reserved_port
from validation.running.sandbox import Sandbox
from validation.running.warm import ForkedRun, WarmParent
from validation.trace import Trace, load_trace

_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.02
# Each holds an imported torch, and Megatron, in memory.
_MAX_PARENTS = 3
_LOG_TAIL = 12
_MAX_LOG_BYTES = 256 * 2**20
# Copies in fp64 come and go with every operation. Left to itself, glibc takes each large one from
# the kernel, zeroed, and gives it back: half of a run's time.
_KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


class RunError(RuntimeError):
    """A run that left no trace: it failed, hung, or was refused."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How this run differs from the plain case.

    Attributes:
        lane: where it runs.
        settings: put over the case's own.
        fault: `module:function` of a planted fault, or of several.
        environment: variables put over the user's; only calibration sets any.
        rounding_seed: makes every operation round at random, as another machine or other code
            might; only calibration does.
        nonce: draws the inputs afresh, see `validation.running.reseed`; only a judge does.
        declared: what the lane is, where another checkout than the one that runs says so.
        sandbox: where the processes are confined; None confines nothing.
        coverage: folder that receives what each of its processes executes, where the environment
            has `validation.running.measured` as its instrument.
    """

    lane: str
    settings: Mapping[str, Any] | None = None
    fault: str | Sequence[str] | None = None
    environment: Mapping[str, str] | None = None
    rounding_seed: int | None = None
    nonce: int | None = None
    declared: Lane | None = None
    sandbox: Sandbox | None = None
    coverage: Path | None = None


def run_case(case: Case, options: RunOptions, root: Path, log: Path) -> Trace:
    """Runs a case in processes of its own.

    The user's environment variables (threads, CPU capability) are obeyed. Ctrl-C, a timeout or a
    failing rank stops every process of the run.

    Args:
        case: what to run.
        options: variations.
        root: working directory, the repository.
        log: appended with everything that the processes print.

    Returns:
        Its trace, ranks merged.

    Raises:
        RunError: no trace; the message ends with the end of the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    fault = options.fault or ()
    lane = options.declared or lane_of(root, options.lane)
    scratch = None if options.sandbox is None else options.sandbox.scratch
    with tempfile.TemporaryDirectory(prefix="golden-", dir=scratch) as folder:
        output = Path(folder)
        job = {
            "case": case.name,
            "target": case.target,
            "settings": {**case.settings, **(options.settings or {})},
            "traced_steps": list(case.traced_steps),
            "lane": asdict(lane),
            "arithmetic": case.arithmetic,
            "rounding_seed": options.rounding_seed,
            "nonce": options.nonce,
            "faults": [fault] if isinstance(fault, str) else list(fault),
            "output": str(output),
            "coverage": None if options.coverage is None else str(options.coverage),
        }
        write_atomically(output / "job.json", encode_json(job))
        start = log.stat().st_size
        problem = _run_processes(case, options, lane, root, output / "job.json", log)
        if problem:
            raise RunError(f"{problem}\n{_tail(log, start)}".rstrip())
        try:
            ranks = [load_trace(output / f"rank{rank}") for rank in range(case.processes)]
        except DamagedFileError as error:
            raise RunError(
                f"the run ended without a trace: {error}\n{_tail(log, start)}"
            ) from error
    return merge_ranks(ranks)


def merge_ranks(ranks: Sequence[Trace]) -> Trace:
    """One trace of several ranks: events by step, then rank; curves and tables rank after rank."""
    if len(ranks) == 1:
        return ranks[0]
    events = sorted((e for t in ranks for e in t.events), key=lambda e: (e.key.step, e.key.rank))
    return replace(
        ranks[0],
        provenance=merged(ranks),
        events=events,
        curves={key: series for trace in ranks for key, series in trace.curves.items()},
        curve_phases={key: phase for trace in ranks for key, phase in trace.curve_phases.items()},
        tables={key: rows for trace in ranks for key, rows in trace.tables.items()},
    )


def _run_processes(
    case: Case, options: RunOptions, lane: Lane, root: Path, job: Path, log: Path
) -> str | None:
    """Runs every rank; returns what went wrong, or None."""
    deadline = time.monotonic() + case.timeout
    runs: list[ForkedRun] = []
    reserved = contextlib.ExitStack()
    start = log.stat().st_size
    try:
        hidden = not lane.on_gpus
        # torch then counts cards through NVML, which leaves CUDA to the forks.
        look = {} if hidden else {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        kept = _KEEP_MEMORY if case.arithmetic == "wide" else {}
        kept = {name: value for name, value in kept.items() if name not in os.environ}
        environment = {**look, **kept, **(options.environment or {})}
        parent = _warm_parent(root, environment, hidden, log, options.sandbox)
        port = reserved.enter_context(reserved_port()) if case.processes > 1 else None
        for rank_environment in _rank_environments(case.processes, port):
            runs.append(parent.start(job, rank_environment, log, case.preload))
        while True:
            codes = [run.poll() for run in runs]
            failed = [(rank, code) for rank, code in enumerate(codes) if code]
            if failed:
                rank, code = failed[0]
                reason = f"signal {-code}" if code < 0 else f"exit code {code}"
                return f"the run failed: rank {rank} ended with {reason}"
            if all(code == 0 for code in codes):
                return None
            if log.stat().st_size > start + _MAX_LOG_BYTES:
                return f"the run was stopped: it printed more than {_MAX_LOG_BYTES:,} bytes"
            if time.monotonic() > deadline:
                return f"the run was stopped after {case.timeout:g} s"
            time.sleep(_POLL_SECONDS)
    except OSError as error:
        return f"the run could not be started: {error}"
    finally:
        _stop(runs)
        reserved.close()


def _stop(runs: Sequence[ForkedRun]) -> None:
    """Ends what still runs: asks first, then insists."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        for run in runs:
            if run.poll() is None:
                run.kill_group(signal_number)
        until = time.monotonic() + _GRACE_SECONDS
        while any(run.poll() is None for run in runs) and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)


class _Parents(threading.local):
    """The parents that a thread has started: each answers one thread only."""

    def __init__(self) -> None:
        self.by_environment: dict[tuple[Any, ...], WarmParent] = {}
        _all_parents.append(self.by_environment)


_all_parents: list[dict[tuple[Any, ...], WarmParent]] = []
_parents = _Parents()


def _warm_parent(
    root: Path,
    environment: Mapping[str, str],
    hidden: bool,
    log: Path,
    sandbox: Sandbox | None,
) -> WarmParent:
    """The parent of runs in this environment; the longest unused one makes room for a new one."""
    key = (root, hidden, sandbox, *sorted(environment.items()))
    started = _parents.by_environment
    parent = started.pop(key, None)
    if parent is None or not parent.alive:
        while len(started) >= _MAX_PARENTS:
            started.pop(next(iter(started))).close()
        parent = WarmParent(root, environment, hidden, log, sandbox)
    started[key] = parent
    return parent


def close_own_parents() -> None:
    """Ends the warm parents of this thread, where no further run will have their environment."""
    while _parents.by_environment:
        _parents.by_environment.popitem()[1].close()


@atexit.register
def close_parents() -> None:
    """Ends the warm parents of every thread, and with them every run."""
    for started in _all_parents:
        while started:
            started.popitem()[1].close()


def _rank_environments(processes: int, port: int | None) -> list[dict[str, str]]:
    if port is None:
        return [{}]
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for rank in range(processes)
    ]


def _tail(log: Path, start: int) -> str:
    with log.open("rb") as stream:
        stream.seek(start)
        lines = stream.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_LOG_TAIL:])
