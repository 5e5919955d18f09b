"""Records of what a person watches: the progress of a build, on a terminal and in a log."""

from __future__ import annotations

import contextlib
import io
from types import SimpleNamespace

from validation.running.recorder import Recorder
from vpmoe.data import progress as progress_module
from vpmoe.data.build import BuildProgress
from vpmoe.data.progress import ProgressDisplay
from vpmoe.runtime.patches import replaced

# Seconds at which a build reports, and how far it is.
_REPORTS = (
    (0.0, BuildProgress(0, 400, 0, 0)),
    (0.1, BuildProgress(10, 400, 5, 900)),
    (0.5, BuildProgress(100, 400, 50, 9_000)),
    (11.0, BuildProgress(110, 400, 51, 9_900)),
    (15.0, BuildProgress(120, 400, 52, 10_000)),
    (7500.0, BuildProgress(200, 400, 1_000, 2_000_000)),
    (15000.0, BuildProgress(400, 400, 2_000, 4_000_000)),
)


class _Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def record_progress(recorder: Recorder) -> None:
    """Records every line of a build's progress, by a clock that the case sets."""
    for name, terminal in (("terminal", True), ("log", False)):
        stream, clock = _Stream(terminal), [0.0]
        ticking = SimpleNamespace(monotonic=lambda clock=clock: clock[0])
        with contextlib.redirect_stderr(stream), replaced(progress_module, "time", ticking):
            with ProgressDisplay() as shown:
                for seconds, progress in _REPORTS:
                    clock[0] = seconds
                    shown(progress)
            with ProgressDisplay():
                pass  # refused before it began
        lines = stream.getvalue().split("\r" if terminal else "\n")
        recorder.discrete(f"progress/{name}", lines, phase="data")
