"""What an acceptance would write: a golden, and what moves with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from validation.goldens.changes import Change
from validation.goldens.declared import Movement, movements
from validation.goldens.golden import Golden
from validation.trace import Trace


@dataclass(frozen=True)
class Proposal:
    """One golden that an acceptance would write.

    Attributes:
        lane: its lane.
        trace: the new trace.
        before: the golden so far, or None.
        changed: what moves beyond the tolerances; of a new environment's golden, which facts are
            other than the nearest one's, since another environment moves no fact.
        identical: records that stay bit-identical.
        compared: records compared.
        note: why there is nothing to compare with, or what was compared with instead.
        place: where the golden goes; empty for the first environment of its case.
    """

    lane: str
    trace: Trace
    before: Golden | None
    changed: Sequence[Change]
    identical: int = 0
    compared: int = 0
    note: str = ""
    place: str = ""

    def describe(self) -> list[str]:
        """The proposal as lines of text."""
        name = f"{self.lane}/{self.trace.case}"
        moved = [f"  {movement.describe()}" for movement in self.movements]
        if self.before is None:
            return [f"{name}: new, {self.trace.records} records{self.note}", *moved]
        head = f"{name}: {self.compared} records compared, {self.identical} bit-identical"
        return [f"{head}; moved:", *moved] if moved else [f"{head}, none moved beyond tolerance"]

    @property
    def movements(self) -> list[Movement]:
        """What moves, grouped by metric."""
        return movements(self.changed)
