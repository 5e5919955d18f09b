"""Runs a case: its processes, their environment, their log, and the trace they leave."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from validation.cases import Case
from validation.files import DamagedFileError, encode_json, write_atomically
from validation.trace import Trace, load_trace

_GRACE_SECONDS = 5.0
_LOG_TAIL = 12


class RunError(RuntimeError):
    """A run that left no trace: it failed, hung, or was refused."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How this run differs from the plain case.

    Attributes:
        lane: where it runs.
        settings: put over the case's own.
        fault: `module:function` of a planted fault.
        environment: variables put over the user's; only calibration sets any.
    """

    lane: str
    settings: Mapping[str, Any] | None = None
    fault: str | None = None
    environment: Mapping[str, str] | None = None


def run_case(case: Case, options: RunOptions, root: Path, log: Path) -> Trace:
    """Runs a case in processes of its own and returns its trace, ranks merged.

    The user's environment variables (threads, CPU capability) are obeyed. Ctrl-C, a timeout or a
    failing rank stops every process of the run.

    Args:
        case: what to run.
        options: variations.
        root: working directory, the repository.
        log: appended with everything that the processes print.

    Raises:
        RunError: no trace; the message ends with the end of the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="golden-") as folder, log.open("ab") as stream:
        output = Path(folder)
        job = {
            "case": case.name,
            "target": case.target,
            "settings": {**case.settings, **(options.settings or {})},
            "traced_steps": list(case.traced_steps),
            "lane": options.lane,
            "fault": options.fault,
            "output": str(output),
        }
        write_atomically(output / "job.json", encode_json(job))
        start = stream.tell()
        problem = _run_processes(case, options, root, output / "job.json", stream)
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
    """One trace of several ranks: events by step, then rank; other ranks' curves named `@rank`."""
    if len(ranks) == 1:
        return ranks[0]
    curves: dict[str, Mapping[int, float]] = {}
    phases: dict[str, str] = {}
    tables: dict[str, Any] = {}
    for rank, trace in enumerate(ranks):
        suffix = f"@{rank}" if rank else ""
        for metric, series in trace.curves.items():
            curves[metric + suffix] = series
            phases[metric + suffix] = trace.curve_phases[metric]
        for name, rows in trace.tables.items():
            tables[name + suffix] = rows
    events = sorted((e for t in ranks for e in t.events), key=lambda e: (e.key.step, e.key.rank))
    return replace(ranks[0], events=events, curves=curves, curve_phases=phases, tables=tables)


def _run_processes(
    case: Case, options: RunOptions, root: Path, job: Path, stream: IO[bytes]
) -> str | None:
    """Runs every rank; returns what went wrong, or None."""
    deadline = time.monotonic() + case.timeout
    command = [sys.executable, "-m", "validation.worker", str(job)]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                _started(
                    command, root, {**os.environ, **(options.environment or {}), **ranked}, stream
                )
            )
            for ranked in _rank_environments(case.processes)
        ]
        while True:
            codes = [process.poll() for process in processes]
            failed = [(rank, code) for rank, code in enumerate(codes) if code]
            if failed:
                rank, code = failed[0]
                reason = f"signal {-code}" if code < 0 else f"exit code {code}"
                return f"the run failed: rank {rank} ended with {reason}"
            if all(code == 0 for code in codes):
                return None
            if time.monotonic() > deadline:
                return f"the run was stopped after {case.timeout:g} s"
            time.sleep(0.05)


def _rank_environments(processes: int) -> list[dict[str, str]]:
    if processes == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        for rank in range(processes)
    ]


@contextlib.contextmanager
def _started(
    command: Sequence[str], root: Path, environment: Mapping[str, str], stream: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, which does not outlive the context."""
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stream,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal_number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE_SECONDS)


def _tail(log: Path, start: int) -> str:
    with log.open("rb") as stream:
        stream.seek(start)
        lines = stream.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_LOG_TAIL:])
