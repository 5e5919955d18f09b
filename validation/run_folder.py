"""The folder of a run, `runs/<time>-<lane>-<source digest>/`: what a command leaves there."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from validation.files import write_atomically
from validation.running.source import tree_digest

VERDICT_FILE = "verdict.json"
REPORT_FILE = "report.html"
JUNIT_FILE = "junit.xml"
LOG_FILE = "log.txt"
BENCH_FILE = "bench.json"
TRACES = "traces"
EVIDENCE = "evidence"
"""What the reports draw, a JSON file for each case."""

# As many runs may start in one second.
_ATTEMPTS = 1000


@dataclass(frozen=True)
class RunFolder:
    """What a command leaves: traces, log, verdict and reports.

    Attributes:
        path: the folder.
    """

    path: Path

    @classmethod
    def create(cls, root: Path, lane: str) -> RunFolder:
        """Makes a run folder that no other run has.

        Args:
            root: the repository.
            lane: where the cases run.

        Returns:
            The folder.

        Raises:
            RuntimeError: too many runs began within the same second.
        """
        runs, source = runs_folder(root), tree_digest(root)
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S")
        for attempt in range(_ATTEMPTS):
            name = f"{stamp}-{lane}-{source[:12]}" + (f"-{attempt}" if attempt else "")
            path = runs / name
            try:
                path.mkdir()
            except FileExistsError:
                continue
            hold(path)
            return cls(path)
        raise RuntimeError(f"{runs}: too many runs at {stamp}")

    @property
    def log(self) -> Path:
        """What the runs printed."""
        return self.path / LOG_FILE

    @property
    def verdict(self) -> Path:
        """The verdict as JSON."""
        return self.path / VERDICT_FILE

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / REPORT_FILE

    @property
    def junit(self) -> Path:
        """The JUnit report."""
        return self.path / JUNIT_FILE

    def trace(self, case: str) -> Path:
        """Folder of a case's trace."""
        return self.path / TRACES / case


def runs_folder(root: Path) -> Path:
    """`runs/`, made if need be, with a file inside that has git ignore it wherever it is."""
    runs = root / "runs"
    ignored = runs / ".gitignore"
    if not ignored.exists():
        write_atomically(ignored, b"*\n")
    return runs


def finished_runs(root: Path) -> list[Path]:
    """The folders of checks that left a verdict, the oldest first."""
    return sorted(path.parent for path in (root / "runs").glob(f"*/{VERDICT_FILE}"))


_held: dict[Path, int] = {}


def hold(path: Path) -> None:
    """Keeps other processes from deleting a run folder as long as this one lives.

    A file system that has no locks keeps nobody: there the age of a run is all that protects it.
    """
    if path not in _held and path.is_dir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
        else:
            _held[path] = descriptor


def held_by_another(path: Path) -> bool:
    """Whether some process holds a run folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
