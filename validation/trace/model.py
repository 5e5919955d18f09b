"""The trace: what one run of a case left, in memory.

A trace holds events in execution order, curves by step, tables, and its provenance. Ranks keep
events of their own; curves of another rank than the first carry `@rank` in their name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from validation.trace.sketch import Sketch

PHASES = ("data", "init", "forward", "backward", "reduction", "optimizer", "resume")

# One row of a table: half-open intervals of allowed keys, and so on; integers or text.
Row = Sequence[int | str]


@dataclass(frozen=True)
class Key:
    """Names a record of a run: where in the execution it was made.

    Attributes:
        step: training step, from 1; 0 before training.
        micro_batch: within the step, from 0.
        phase: one of `PHASES`.
        module: fully qualified module name, or what the record is about.
        tensor: tensor of the module.
        rank: global rank.
        occurrence: counts further records of the same place, from 0.
    """

    step: int
    micro_batch: int
    phase: str
    module: str
    tensor: str
    rank: int = 0
    occurrence: int = 0


@dataclass(frozen=True)
class Event:
    """A record: a sketched tensor (floating) or a JSON value (discrete)."""

    key: Key
    value: Sketch | Any

    @property
    def floating(self) -> bool:
        """Whether the record is compared with a tolerance."""
        return isinstance(self.value, Sketch)


@dataclass(frozen=True)
class Trace:
    """What a run left.

    Attributes:
        case: name of the case.
        provenance: how it was made: environment, source tree, settings, command.
        events: in execution order, rank after rank within a step.
        curves: metric -> step -> value; values are exact fp64.
        curve_phases: metric -> the phase that makes it, for placing it in execution order.
        tables: name -> rows, such as allowed-key intervals by query of a window mask.
    """

    case: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[Event] = ()
    curves: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    curve_phases: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)

    @property
    def records(self) -> int:
        """How many records there are to compare."""
        return len(self.events) + sum(map(len, self.curves.values())) + len(self.tables)

    def up_to(self, step: int) -> Trace:
        """The part of the trace that a run stopped after `step` would have left."""
        return Trace(
            case=self.case,
            provenance=self.provenance,
            events=[event for event in self.events if event.key.step <= step],
            curves={
                name: {s: v for s, v in series.items() if s <= step}
                for name, series in self.curves.items()
                if any(s <= step for s in series)
            },
            curve_phases=self.curve_phases,
            tables=self.tables,
        )
