"""What a campaign of mutants says: how many were killed, and which survived.

A survivor counts against the score whatever it is. Some change nothing that anybody could see (a
larger capacity, a cache that is never cleared); whoever reads the list says so in words beside it,
and no figure is mended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from validation.mutation.mutants import Mutant
from validation.mutation.trial import Outcome


@dataclass(frozen=True)
class Tried:
    """A mutant and what became of it."""

    mutant: Mutant
    outcome: Outcome
    diff: str

    def to_json(self) -> dict[str, Any]:
        """An entry of the survivors."""
        edit = self.mutant.edit
        return {
            "id": self.mutant.id,
            "file": self.mutant.name,
            "line": edit.line,
            "function": edit.function,
            "operator": edit.operator,
            "diff": self.diff,
            "cases": list(self.mutant.cases),
            "killed_by_tests": self.outcome.tests,
            "note": self.outcome.note,
        }


@dataclass(frozen=True)
class Score:
    """Every mutant that was tried.

    Attributes:
        tried: those on lines that no case runs included.
        with_tests: whether the unit tests were asked about survivors.
    """

    tried: Sequence[Tried]
    with_tests: bool

    @property
    def survivors(self) -> list[Tried]:
        """Mutants on lines that a case runs which no case has killed."""
        return [t for t in self.tried if t.mutant.cases and not t.outcome.killed]

    def to_json(self) -> dict[str, Any]:
        """The one object that `golden mutate --json` prints."""
        return {
            **self.counts(self.tried),
            "survivors": [one.to_json() for one in self.survivors],
            "by_module": {
                name: self.counts([t for t in self.tried if t.mutant.name == name])
                for name in sorted({t.mutant.name for t in self.tried})
            },
            "by_operator": {
                name: self.counts([t for t in self.tried if t.mutant.edit.operator == name])
                for name in sorted({t.mutant.edit.operator for t in self.tried})
            },
        }

    def counts(self, tried: Sequence[Tried]) -> dict[str, int | None]:
        """How many were made, stood on lines that cases run, and were killed."""
        covered = [t for t in tried if t.mutant.cases]
        killed = sum(t.outcome.killed for t in covered)
        by_tests = sum(t.outcome.tests is True for t in covered if not t.outcome.killed)
        return {
            "mutants": len(tried),
            "covered": len(covered),
            "killed": killed,
            "killed_with_tests": killed + by_tests if self.with_tests else None,
        }
