"""The trace: what one run of a case left, in memory.

A trace holds events in execution order, curves by step, tables, and its provenance. Each record
belongs to a rank: an event by its `Key`, a curve by its `CurveKey`, a table by its `TableKey`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from validation.compat import StrEnum
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


class RecordKind(StrEnum):
    """What a record is, and so how it is compared."""

    CURVE = "curve"
    TENSOR = "tensor"
    DISCRETE = "discrete"
    INVARIANT = "invariant"
    TABLE = "table"


@dataclass(frozen=True, order=True)
class CurveKey:
    """Names a curve; as text `lm_loss` of the first rank, `lm_loss@1` of the second.

    The text is for people: a metric may itself be called `lm_loss@1`. Nothing reads it back.

    Attributes:
        metric: what is measured; any name.
        rank: global rank.
    """

    metric: str
    rank: int = 0

    def __str__(self) -> str:
        """As people write it."""
        return _with_rank(self.metric, self.rank)


@dataclass(frozen=True, order=True)
class TableKey:
    """Names a table, as `CurveKey` does a curve.

    Attributes:
        name: what the table is of; any name.
        rank: global rank.
    """

    name: str
    rank: int = 0

    def __str__(self) -> str:
        """As people write it."""
        return _with_rank(self.name, self.rank)


def _with_rank(name: str, rank: int) -> str:
    return f"{name}@{rank}" if rank else name


@dataclass(frozen=True)
class HeldInvariant:
    """What `Recorder.invariant` records: a relation that a run must hold, and whether it did.

    By how much it held is not recorded, so that runs which hold it are alike.

    Attributes:
        name: what it demands.
        holds: whether the run held it.
        facts: JSON values that were recorded with it, exactly.
        error: how far it is off, as text; None where it holds.
        bound: what it may be off by; None where it holds.
    """

    name: str
    holds: bool
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    bound: Any = None

    def to_json(self) -> dict[str, Any]:
        """As a file has it, in the order in which it is written."""
        value = {"law": self.name, **self.facts, "holds": self.holds}
        return value if self.holds else {**value, "error": self.error, "bound": self.bound}

    @classmethod
    def from_json(cls, value: object) -> HeldInvariant | None:
        """The invariant that `to_json` has written; None of any other value."""
        if not isinstance(value, Mapping) or not isinstance(value.get("holds"), bool):
            return None
        ending = ("holds",) if value["holds"] else ("holds", "error", "bound")
        names = tuple(value)
        if names[:1] != ("law",) or names[-len(ending) :] != ending:
            return None
        facts = {name: value[name] for name in names[1 : -len(ending)]}
        broken = () if value["holds"] else (value["error"], value["bound"])
        if not all(isinstance(text, str) for text in (value["law"], *broken[:1])):
            return None
        return cls(value["law"], value["holds"], facts, *broken)


@dataclass(frozen=True)
class Event:
    """A record: a sketched tensor (floating), an invariant, or any JSON value (discrete)."""

    key: Key
    value: Sketch | HeldInvariant | Any

    @property
    def floating(self) -> bool:
        """Whether the record is compared with a tolerance."""
        return isinstance(self.value, Sketch)

    @property
    def kind(self) -> RecordKind:
        """What the record is."""
        if isinstance(self.value, Sketch):
            return RecordKind.TENSOR
        invariant = isinstance(self.value, HeldInvariant)
        return RecordKind.INVARIANT if invariant else RecordKind.DISCRETE


@dataclass(frozen=True)
class Trace:
    """What a run left.

    Attributes:
        case: name of the case.
        provenance: how it was made: environment, source tree, settings, command.
        events: in execution order, rank after rank within a step.
        curves: key -> step -> value; values are exact fp64.
        curve_phases: key -> the phase that makes it, for placing it in execution order.
        tables: key -> rows, such as allowed-key intervals by query of a window mask.
    """

    case: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[Event] = ()
    curves: Mapping[CurveKey, Mapping[int, float]] = field(default_factory=dict)
    curve_phases: Mapping[CurveKey, str] = field(default_factory=dict)
    tables: Mapping[TableKey, Sequence[Row]] = field(default_factory=dict)

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
                key: {s: v for s, v in series.items() if s <= step}
                for key, series in self.curves.items()
                if any(s <= step for s in series)
            },
            curve_phases=self.curve_phases,
            tables=self.tables,
        )
