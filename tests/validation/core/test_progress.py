"""Progress: the same lines everywhere, and on a terminal a bar that follows the calls."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from validation.cli import progress as shown
from validation.cli.progress import TerminalProgress
from validation.progress import Lines, Progress


def tell(progress: Progress) -> None:
    progress.started(1, 2, "one", "the first")
    progress.message("[7/9] is no part: a line of somebody's log")
    progress.ended(1, 2, "one", "PASS")


SAID = ["[1/2] one: the first", "[7/9] is no part: a line of somebody's log", "[1/2] one: PASS"]


def test_calls_become_lines() -> None:
    lines: list[str] = []
    tell(Lines(lines.append))
    assert lines == SAID


def test_without_a_terminal_the_lines_have_their_time(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalProgress() as progress:
        tell(progress)
    said = capsys.readouterr().err.splitlines()
    assert [re.sub(r"^ *\d+\.\d s  ", "", line) for line in said] == SAID
    assert all(re.match(r" *\d+\.\d s  ", line) for line in said)


def test_on_a_terminal_the_bar_follows_the_calls_and_no_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = io.StringIO()

    def console(**options: Any) -> Console:
        del options
        return Console(file=screen, force_terminal=True, width=120, highlight=False)

    monkeypatch.setattr(shown, "Console", console)

    def bar(progress: TerminalProgress) -> tuple[float, float | None, str]:
        assert progress._bar is not None
        (task,) = progress._bar.tasks
        return task.completed, task.total, task.description

    with TerminalProgress() as progress:
        progress.started(2, 3, "two", "the second")
        assert bar(progress) == (1, 3, "two: the second")
        progress.message("[7/9] is no part")
        assert bar(progress) == (1, 3, "[7/9] is no part")
        progress.ended(2, 3, "two", "PASS")
        assert bar(progress) == (2, 3, "two: PASS")
    assert "[2/3] two: the second" in screen.getvalue()
    assert progress._bar is None
