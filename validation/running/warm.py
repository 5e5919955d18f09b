"""A warm parent: a process that has imported what runs need, and forks each run from itself.

Importing torch and Megatron takes longer than most cases. `validation.running.execution` keeps
one parent for each environment and asks it for processes:

    requests  {"job": FILE, "environment": {...}, "preload": [...]}    a line on stdin, a socket,
                                                   with the open log as its file descriptor
              {"signal": N, "pid": N}              to a run and all that it has started
    answers   {"pid": N}, and when it has ended {"pid": N, "code": N}              lines on stdout

Every run is a process of its own, in its own session; all of them die with the parent, and the
parent with whoever started it. In a sandbox the numbers of processes are the sandbox's own, and no
log could be opened: hence the signals and the descriptors.

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
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from validation.compat import module_command
from validation.config import search_path
from validation.config.python_path import python_path, real_entries
from validation.isolation import isolated
from validation.running.sandbox import Sandbox

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
        sandbox: where it and its runs are confined; None confines nothing.
    """

    def __init__(
        self,
        root: Path,
        environment: Mapping[str, str],
        without_gpus: bool,
        log: Path,
        sandbox: Sandbox | None = None,
    ) -> None:
        given = {**os.environ, **environment}
        given["PYTHONPATH"] = _search_path(root, given.get("PYTHONPATH"))
        given = isolated(given) if without_gpus else given
        command = module_command("validation.running.warm")
        if sandbox is not None:
            given = sandbox.environment(given)
            command = sandbox.command(command, given)
        self._requests, theirs = socket.socketpair()
        with log.open("ab") as stream, theirs:
            self._process = subprocess.Popen(
                command,
                cwd=root,
                env=given,
                stdin=theirs.fileno(),
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

        Args:
            job: file that describes the run.
            environment: variables of the process.
            log: receives what the process prints.
            preload: modules that the parent imports before it forks.

        Returns:
            The started run.

        Raises:
            OSError: the parent has died.
        """
        request = {
            "job": str(job),
            "environment": dict(environment),
            "preload": list(preload),
        }
        with log.open("ab") as stream:
            socket.send_fds(self._requests, [_line(request)], [stream.fileno()])
        while not self._pending:
            if not self._receive(timeout=None):
                raise BrokenPipeError(f"the parent of the runs died ({self._ended()})")
        return ForkedRun(self, self._pending.pop(0))

    def code(self, pid: int) -> int | None:
        """Exit code of a run, negative for a signal; None while it runs."""
        if self._codes.get(pid) is None and not self._receive(timeout=0.0):
            self._codes[pid] = self._ended()
        return self._codes.get(pid)

    def kill(self, pid: int, signal_number: int) -> None:
        """Signals a run and every process that it started."""
        with contextlib.suppress(OSError):  # the parent has died, and its runs with it
            self._requests.sendall(_line({"pid": pid, "signal": signal_number}))

    def close(self) -> None:
        """Ends the parent and every run of it."""
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal_number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_GRACE_SECONDS)
        self._requests.close()
        if self._process.stdout is not None:
            with contextlib.suppress(OSError):
                self._process.stdout.close()

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
        self._parent.kill(self.pid, signal_number)


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _search_path(root: Path, given: str | None) -> str:
    """PYTHONPATH of the runs: the given one, then the repository, whose code is importable so."""
    return python_path(given, search_path(root))


# --- the parent process ----------------------------------------------------------------------


def serve() -> int:
    """Answers requests on stdin until it closes; returns 0."""
    real_entries()
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
    requests = socket.socket(fileno=os.dup(0))
    received = b""
    logs: list[int] = []
    while True:
        ready, _, _ = select.select([requests], [], [], _POLL_SECONDS if children else None)
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
        content, descriptors, _, _ = socket.recv_fds(requests, 65536, 1)
        if not content:
            leave()
        logs += descriptors
        *lines, received = (received + content).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if "signal" in request:
                if request["pid"] in children:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(request["pid"], request["signal"])
                continue
            _preload(request["preload"])
            sys.stdout.flush()
            sys.stderr.flush()
            log = logs.pop(0)
            pid = os.fork()
            if pid == 0:
                _run(request, log, [answers.fileno(), requests.fileno()])
            os.close(log)
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


def _run(request: Mapping[str, Any], log: int, parents: Sequence[int]) -> None:
    """The forked process: never returns."""
    code = 1
    try:
        os.setsid()
        die_with_parent(signal.SIGKILL)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        for descriptor in parents:  # the parent's ends are not this process's
            os.close(descriptor)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.environ.update(request["environment"])
        if _cuda_is_lost():
            command = module_command("validation.running.worker", request["job"])
            os.execv(command[0], list(command))  # noqa: S606 this very program, as itself
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
