"""Progress messages of long commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Told what happens: what is shown of it is its own affair."""

    def started(self, number: int, total: int, name: str, description: str) -> None:
        """A part begins: a case, or whatever the command counts.

        Args:
            number: of the part, from 1.
            total: how many parts there are.
            name: of the part.
            description: what is done.
        """

    def ended(self, number: int, total: int, name: str, outcome: str) -> None:
        """A part has ended; as `started`, with what came of it."""

    def message(self, text: str) -> None:
        """Something else to know, in a line."""


class Lines:
    """Progress as lines of text.

    Args:
        say: receives each line.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say

    def started(self, number: int, total: int, name: str, description: str) -> None:
        """Says `[number/total] name: description`."""
        self._say(f"[{number}/{total}] {name}: {description}")

    def ended(self, number: int, total: int, name: str, outcome: str) -> None:
        """Says `[number/total] name: outcome`."""
        self._say(f"[{number}/{total}] {name}: {outcome}")

    def message(self, text: str) -> None:
        """Says the line."""
        self._say(text)
