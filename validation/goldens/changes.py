"""What differs between two traces of a case, as a person reads it and as `--expect` declares it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from validation.compare import Comparison
from validation.verdict import Divergence


@dataclass(frozen=True)
class Change:
    """A metric, tensor, table or fact that differs, over all its steps.

    Attributes:
        metric: metric of a curve, or `module.tensor`, or a table's name.
        first: where it first differs.
        count: differing records.
        largest: largest relative change; inf for discrete or one-sided records.
        direction: `up`, `down`, or `any` when it goes both ways or has no direction.
    """

    metric: str
    first: Divergence
    count: int
    largest: float
    direction: str

    def describe(self) -> str:
        """One line."""
        size = "" if math.isinf(self.largest) else f", largest relative change {self.largest:.3g}"
        arrow = {"up": " up", "down": " down", "any": ""}[self.direction]
        return (
            f"{self.metric}: {self.count} record(s) differ{arrow} from step {self.first.step}{size}"
            f" (expected {self.first.expected}, now {self.first.actual})"
        )


@dataclass(frozen=True)
class Expectation:
    """`CASE:METRIC:up|down|any[:MAXREL]`: movement that an acceptance declares.

    Attributes:
        case: name of the case.
        metric: name or pattern (`*`) of what moves.
        direction: `up`, `down` or `any`.
        largest: bound of the relative change; inf without one.
    """

    case: str
    metric: str
    direction: str
    largest: float = math.inf

    @classmethod
    def parse(cls, text: str) -> Expectation:
        """Parses the command line's form.

        Raises:
            ValueError: it is malformed; the message says how.
        """
        words = text.split(":")
        bound = math.inf
        try:
            if words[-1] not in ("up", "down", "any"):
                bound = float(words.pop())
            case, *metric, direction = words
        except ValueError:
            case, metric, direction = "", [], ""
        name = ":".join(metric)
        if not (case and name and direction in ("up", "down", "any") and bound > 0):
            raise ValueError(f"{text!r}: expected CASE:METRIC:up|down|any[:MAXREL]")
        return cls(case, name, direction, bound)

    def covers(self, case: str, change: Change) -> bool:
        """Whether this declaration allows a change."""
        return (
            self.case == case
            and fnmatchcase(change.metric, self.metric)
            and self.direction in ("any", change.direction)
            and not change.largest > self.largest
        )


def changes(comparison: Comparison) -> list[Change]:
    """Groups the divergences of a comparison by what they are about, in execution order."""
    groups: dict[str, list[Divergence]] = {}
    for divergence in comparison.divergences:
        groups.setdefault(_metric(divergence), []).append(divergence)
    return [_change(metric, found) for metric, found in groups.items()]


def _metric(divergence: Divergence) -> str:
    if divergence.module == "training" or divergence.tensor == "table":
        return str(divergence.tensor if divergence.module == "training" else divergence.module)
    return ".".join(part for part in (divergence.module, divergence.tensor) if part)


def _change(metric: str, found: Sequence[Divergence]) -> Change:
    largest = max(
        (math.inf if d.relative_error is None else d.relative_error for d in found),
        key=lambda e: math.inf if math.isnan(e) else e,
    )
    signs = set()
    for divergence in found:
        if isinstance(divergence.expected, float) and isinstance(divergence.actual, float):
            signs.add(divergence.actual > divergence.expected)
        else:
            signs |= {True, False}
    direction = "any" if len(signs) != 1 else ("up" if signs == {True} else "down")
    return Change(metric, found[0], len(found), largest, direction)
