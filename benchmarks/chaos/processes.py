"""Starts `golden` on a scratch repository, in time, and finds the processes that it leaves."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT = 60.0
"""Seconds after which a command of the scratch repository, which takes one, has hung."""

_GRACE = 12.0  # a deaf worker is asked, then killed, after 5 s each
_POLL = 0.02
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        words: of its command line.
        code: its exit code, negative for a signal; None where it hung and was killed.
        out: standard output.
        err: standard error.
        seconds: how long it took.
    """

    words: Sequence[str]
    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def crashed(self) -> bool:
        """Whether it ended in an error that nobody has put into words."""
        return "Traceback (most recent call last)" in self.err

    def tail(self) -> str:
        """The end of what it said, for a report."""
        lines = (self.out + self.err).strip().splitlines()
        return f"golden {' '.join(self.words)}: exit {self.code}: " + " | ".join(lines[-4:])[-600:]


class Running:
    """A `golden` that was started.

    Args:
        root: the repository it works on.
        words: of its command line.
        more: variables over its environment.
        before: a command that starts it, such as `setpriv ...`.
        stop: (signal, N), with which it stops itself at its Nth operation (`driver`).
        output: where its standard output goes instead.
    """

    def __init__(
        self,
        root: Path,
        words: Sequence[str],
        *,
        more: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
        stop: tuple[int, int, Path] | None = None,
        output: Path | None = None,
    ) -> None:
        self.words, self._began = list(words), time.monotonic()
        module = ["-m", "validation.cli"]
        if stop is not None:
            module = ["-m", "benchmarks.chaos.driver", *map(str, stop)]
        # Files, not pipes: what a killed command leaves running would keep a pipe open.
        logs = root.parent / "logs"
        logs.mkdir(exist_ok=True)
        number = len(list(logs.iterdir()))
        self._out, self._err = output or logs / f"{number}.out", logs / f"{number}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*before, sys.executable, *module, *words],
                cwd=root,
                env={**environment(root), **(more or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def signal(self, number: int, *, group: bool) -> None:
        """Signals the command, or its whole process group."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, number)

    def wait(self, timeout: float = TIMEOUT) -> Ended:
        """Waits for its end; kills what does not end in time."""
        try:
            code: int | None = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
            self.signal(signal.SIGKILL, group=True)
            self.process.wait()
        seconds = time.monotonic() - self._began
        out = "" if self._out.is_char_device() else self._out.read_text(errors="replace")
        return Ended(self.words, code, out, self._err.read_text(errors="replace"), seconds)


def golden(root: Path, *words: str, timeout: float = TIMEOUT, **more: str) -> Ended:
    """Runs a command to its end."""
    return Running(root, words, more=more).wait(timeout)


def environment(root: Path) -> dict[str, str]:
    """Variables of every command: the suite's own, without what would lead it elsewhere."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GIT_", "PYTEST", "GOLDEN_", "MLFLOW_", "CHAOS_"))
    }
    temporary = root.parent / "tmp"
    temporary.mkdir(exist_ok=True)
    return {
        **inherited,
        "PYTHONPATH": str(CHECKOUT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "GOLDEN_MLFLOW": "0",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(temporary),
    }


# --- orphans ---------------------------------------------------------------------------------


def adopt_orphans() -> None:
    """Makes this process the parent of whatever a command leaves running (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def orphans(known: Iterable[int] = ()) -> list[str]:
    """Processes that ended commands have left, once they had time to end; kills them.

    Args:
        known: children that are to stay.
    """
    until = time.monotonic() + _GRACE
    while (left := _children() - set(known)) and time.monotonic() < until:
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(_POLL)
    named = []
    for pid in sorted(left):
        named.append(_command_line(pid))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    return named + (orphans(known) if named else [])


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that these have."""
    parents = _parents()
    found = [child for child, parent in parents.items() if parent == pid]
    return [*found, *(other for child in found for other in descendants(child))]


def _children() -> set[int]:
    return {pid for pid, parent in _parents().items() if parent == os.getpid()}


def _parents() -> dict[int, int]:
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name before it is in parentheses, and may hold anything.
            found[int(folder.name)] = int(
                (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
            )
    return found


def _command_line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return f"process {pid}"
    return b" ".join(words).decode(errors="replace").strip()[:200] or f"process {pid}"
