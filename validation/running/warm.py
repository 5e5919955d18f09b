"""A warm parent: a process that has imported what runs need, and forks each run from itself.

Importing torch and Megatron takes longer than most cases. `validation.running.execution` keeps
one parent for each environment and asks it for processes:

    request   {"job": FILE, "environment": {...}, "log": FILE, "preload": [...]}   a line on stdin
    answers   {"pid": N}, and when it has ended {"pid": N, "code": N}              lines on stdout

Every run is a process of its own, in its own session; all of them die with the parent, and the
parent with whoever started it.

A fork cannot use CUDA once its parent has. Where an import has touched it, a run starts again as a
fresh process.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from validation.config import search_path
from validation.isolation import isolated

_POLL_SECONDS = 0.02
_GRACE_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


class WarmParent:
    """The client's side: starts the parent process and asks it for runs.

    Args:
        root: working directory of the runs.
        environment: variables put over this process's own.
        without_gpus: whether accelerators, and what needs them, are hidden from it and its runs.
        log: appended with what the parent itself prints.
    """

    def __init__(
        self, root: Path, environment: Mapping[str, str], without_gpus: bool, log: Path
    ) -> None:
        given = {**os.environ, **environment}
        given["PYTHONPATH"] = _search_path(root, given.get("PYTHONPATH"))
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "validation.running.warm"],
                cwd=root,
                env=isolated(given) if without_gpus else given,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                start_new_session=True,
            )
        self._codes: dict[int, int | None] = {}
        self._pending: list[int] = []
        self._received = b""

    @property
    def alive(self) -> bool:
        """Whether it can start another run."""
        return self._process.poll() is None

    def start(
        self, job: Path, environment: Mapping[str, str], log: Path, preload: Sequence[str]
    ) -> ForkedRun:
        """Forks a process for a job.

        Raises:
            OSError: the parent has died.
        """
        request = {
            "job": str(job),
            "environment": dict(environment),
            "log": str(log),
            "preload": list(preload),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        while not self._pending:
            if not self._receive(timeout=None):
                raise BrokenPipeError(f"the parent of the runs died ({self._ended()})")
        return ForkedRun(self, self._pending.pop(0))

    def code(self, pid: int) -> int | None:
        """Exit code of a run, negative for a signal; None while it runs."""
        if self._codes.get(pid) is None and not self._receive(timeout=0.0):
            self._codes[pid] = self._ended()
        return self._codes.get(pid)

    def close(self) -> None:
        """Ends the parent and every run of it."""
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal_number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_GRACE_SECONDS)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _ended(self) -> int:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        return self._process.returncode or 1

    def _receive(self, timeout: float | None) -> bool:
        """Takes in what the parent has answered; False when it has died."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while select.select([descriptor], [], [], timeout)[0]:
            content = os.read(descriptor, 65536)
            if not content:
                return False
            *lines, self._received = (self._received + content).split(b"\n")
            for line in lines:
                answer = json.loads(line)
                if "code" in answer:
                    self._codes[answer["pid"]] = answer["code"]
                else:
                    self._pending.append(answer["pid"])
            timeout = 0.0
        return True


class ForkedRun:
    """One run, with the part of `subprocess.Popen` that a watcher needs."""

    def __init__(self, parent: WarmParent, pid: int) -> None:
        self._parent = parent
        self.pid = pid

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        return self._parent.code(self.pid)

    def kill_group(self, signal_number: int) -> None:
        """Signals the run and every process that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal_number)


def _search_path(root: Path, given: str | None) -> str:
    """PYTHONPATH of the runs: the given one, then the repository, whose code is importable so."""
    parts = (given, *search_path(root))
    return os.pathsep.join(part for part in parts if part)


# --- the parent process ----------------------------------------------------------------------


def serve() -> int:
    """Answers requests on stdin until it closes; returns 0."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what imports print belongs into the log
    die_with_parent(signal.SIGTERM)
    children: set[int] = set()
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def leave(*_: object) -> None:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)
    received = b""
    while True:
        ready, _, _ = select.select([0], [], [], _POLL_SECONDS if children else None)
        for pid in list(children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                children.discard(pid)
                # Helpers that the run started (loaders, checkpoint writers) must not outlive it.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                code = os.waitstatus_to_exitcode(status)
                answers.write(json.dumps({"pid": pid, "code": code}) + "\n")
        if not ready:
            continue
        content = os.read(0, 65536)
        if not content:
            leave()
        *lines, received = (received + content).split(b"\n")
        for line in lines:
            request = json.loads(line)
            _preload(request["preload"])
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
            if pid == 0:
                _run(request, answers.fileno())
            children.add(pid)
            answers.write(json.dumps({"pid": pid}) + "\n")


def _preload(names: Sequence[str]) -> None:
    """Imports modules, and calls functions named `module:function`, once.

    What cannot be imported is left to the run, whose error then reaches the user.
    """
    for name in names:
        if name in _PRELOADED:
            continue
        _PRELOADED.add(name)
        module, colon, function = name.partition(":")
        try:
            if importlib.util.find_spec(module) is None:  # as torch, which not every loop needs
                continue
            loaded = importlib.import_module(module)
            if colon:
                getattr(loaded, function)()
        except Exception:
            traceback.print_exc()


_PRELOADED: set[str] = set()


def _run(request: Mapping[str, Any], answers: int) -> None:
    """The forked process: never returns."""
    code = 1
    try:
        os.setsid()
        die_with_parent(signal.SIGKILL)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.close(answers)
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.environ.update(request["environment"])
        if _cuda_is_lost():
            command = [sys.executable, "-P", "-m", "validation.running.worker", request["job"]]
            os.execv(sys.executable, command)  # noqa: S606 this very program, as itself
        from validation.running.worker import main

        code = main([request["job"]])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        # Not sys.exit(): the parent's exit handlers are not this process's to run.
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF)


def _cuda_is_lost() -> bool:
    """Whether the parent had used CUDA through torch before this process was forked."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False  # there is none to lose, though a look for cards has touched it
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda._is_in_bad_fork())


def die_with_parent(signal_number: int) -> None:
    """Asks Linux to signal this process when its parent ends, however it ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)


if __name__ == "__main__":
    sys.exit(serve())
