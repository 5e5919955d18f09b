"""An attempt: one disturbance of one command or file, and what the oracle finds wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from benchmarks.chaos.processes import Ended
from benchmarks.chaos.repository import States

LOST, WRONG, HANG, LEFT = "lost", "wrong verdict", "hang", "left behind"
"""What can go wrong: something accepted is gone, the verdict, no end in time, a process or file."""


class Skipped(Exception):  # noqa: N818 no error: this machine cannot make the attempt
    """This machine cannot make the attempt; the message says why."""


@dataclass
class Attempt:
    """An attempt that is being made.

    Attributes:
        name: kind and number, which `--only` repeats.
        random: its own, from the seed of the suite.
        folder: its own; receives the copy of a state.
        states: of the scratch repository.
        did: what was done, for the report.
        wrong: (what can go wrong, text) pairs.
    """

    name: str
    random: Random
    folder: Path
    states: States
    did: str = ""
    wrong: list[tuple[str, str]] = field(default_factory=list)

    def blame(self, what: str, text: str) -> None:
        """Notes something that is wrong."""
        self.wrong.append((what, text))

    def expect(self, ended: Ended, *codes: int) -> bool:
        """Whether a command ended in time, with one of these exit codes and in words of its own."""
        if ended.code is None:
            self.blame(HANG, ended.tail())
        elif ended.crashed:
            self.blame(WRONG, f"{ended.tail()} (a traceback)")
        elif ended.code not in codes:
            self.blame(WRONG, f"{ended.tail()}; expected {' or '.join(map(str, codes))}")
        else:
            return True
        return False


Make = Callable[[Attempt], None]
"""Makes an attempt; notes what is wrong with it."""
