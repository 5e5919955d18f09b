"""What differs between two traces of a case, as a person reads it: each metric, tensor and fact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from validation.compare import Comparison, Divergence
from validation.trace import RecordKind, Trace

_LONGEST = 80


@dataclass(frozen=True)
class Change:
    """A metric, tensor, table or fact that differs, over all its steps.

    Attributes:
        metric: name of a curve, or `module.tensor`, or a table's name.
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
            f" (expected {_short(self.first.expected)}, now {_short(self.first.actual)})"
        )


def _short(value: object) -> str:
    """A value as one reads it; long lists from their beginning."""
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def changes(comparison: Comparison) -> list[Change]:
    """Groups the divergences of a comparison by what they are about, in execution order."""
    groups: dict[tuple[object, ...], list[Divergence]] = {}
    for divergence in comparison.divergences:
        groups.setdefault(_about(divergence), []).append(divergence)
    return [_change(found[0].name, found) for found in groups.values()]


def recorded_metrics(trace: Trace) -> set[str]:
    """Every name under which a record of a trace could differ."""
    tensors = {
        ".".join(part for part in (event.key.module, event.key.tensor) if part)
        for event in trace.events
    }
    return tensors | {str(key) for key in (*trace.curves, *trace.tables)}


def _about(divergence: Divergence) -> tuple[object, ...]:
    """What a divergence is of: one curve, one table, or a tensor or fact on any rank."""
    if divergence.kind in (RecordKind.CURVE, RecordKind.TABLE):
        return divergence.kind, divergence.module, divergence.tensor, divergence.rank
    return divergence.module, divergence.tensor


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
