"""Progress of a command on stderr."""

from __future__ import annotations

import sys
import time

import rich.progress
from rich.console import Console
from rich.text import Text

from validation.progress import Lines


class TerminalProgress(Lines):
    """Progress on stderr: lines, and on a terminal inside `with` a bar below them."""

    def __init__(self) -> None:
        super().__init__(self._show)
        self._began = time.monotonic()
        self._console = Console(stderr=True, highlight=False)
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> TerminalProgress:
        if self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.SpinnerColumn(),
                rich.progress.BarColumn(30),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeElapsedColumn(),
                rich.progress.TextColumn("{task.description}", markup=False),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._bar.add_task("", total=None)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def started(self, number: int, total: int, name: str, description: str) -> None:
        """Shows a line, and the parts before this one as done."""
        super().started(number, total, name, description)
        self._move(f"{name}: {description}", number - 1, total)

    def ended(self, number: int, total: int, name: str, outcome: str) -> None:
        """Shows a line, and the parts up to this one as done."""
        super().ended(number, total, name, outcome)
        self._move(f"{name}: {outcome}", number, total)

    def message(self, text: str) -> None:
        """Shows a line; the bar stays where it is."""
        super().message(text)
        self._move(text)

    def _show(self, line: str) -> None:
        elapsed = f"{time.monotonic() - self._began:6.1f} s"
        if self._console.is_terminal:
            self._console.print(Text.assemble((elapsed, "dim"), " ", line))
        else:
            print(f"{elapsed}  {line}", file=sys.stderr, flush=True)

    def _move(self, text: str, completed: int | None = None, total: int | None = None) -> None:
        """Puts a text beside the bar, and moves it where numbers are given."""
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, description=text, completed=completed, total=total)
