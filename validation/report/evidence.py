"""What a report shows of one case beside its verdict: curves, events, tables, on both sides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from validation.compat import StrEnum
from validation.trace import RecordKind


class State(StrEnum):
    """How a record compared, mildest first."""

    IDENTICAL = "bit-identical"
    WITHIN = "within tolerance"
    OUTSIDE = "outside tolerance"
    DIFFERS = "differs"
    NAN = "not a number"
    MISSING = "missing"
    EXTRA = "extra"

    @property
    def passes(self) -> bool:
        """Whether a record in this state is acceptable."""
        return self in (State.IDENTICAL, State.WITHIN)


@dataclass(frozen=True)
class CurveEvidence:
    """A metric over steps.

    Attributes:
        metric: its name.
        steps: training steps, ascending.
        golden: golden values; None where the golden has no value.
        actual: the run's values; None where the run has none.
        tolerance: allowed absolute deviation; None where the value is discrete.
        states: how each step compared.
    """

    metric: str
    steps: Sequence[int]
    golden: Sequence[float | None]
    actual: Sequence[float | None]
    tolerance: Sequence[float | None]
    states: Sequence[State]


@dataclass(frozen=True)
class EventEvidence:
    """One compared event of the trace, in execution order.

    Attributes:
        step: training step.
        phase: forward, backward, ...
        module: fully qualified module name.
        tensor: tensor or record name.
        state: how it compared.
        ratio: relative error over tolerance, for floating records; None when there is none.
    """

    step: int
    phase: str
    module: str
    tensor: str
    state: State
    ratio: float | None = None


Intervals = Sequence[Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class TableEvidence:
    """A table of allowed keys per query, as half-open intervals per row.

    Attributes:
        name: what it is of (layer, backend).
        columns: number of columns.
        golden: rows of the golden; None when it has no such table.
        actual: rows of the run; None when it has none.
    """

    name: str
    columns: int
    golden: Intervals | None
    actual: Intervals | None


@dataclass(frozen=True)
class DecodedEvidence:
    """Text around the first differing token of one side."""

    side: str
    before: str
    token: str
    after: str


@dataclass(frozen=True)
class CaseEvidence:
    """All of a case.

    Attributes:
        curves: every metric of either side.
        events: of the steps that are worth a look.
        tables: those of allowed keys.
        golden: the golden's provenance, flat.
        decoded: text around the first differing token.
        detects: as in `CaseResult`.
        first_kind: kind of the first divergence, which `verdict.json` does not say.
    """

    curves: Sequence[CurveEvidence] = ()
    events: Sequence[EventEvidence] = ()
    tables: Sequence[TableEvidence] = ()
    golden: Mapping[str, str] = field(default_factory=dict)
    decoded: Sequence[DecodedEvidence] = ()
    detects: Mapping[str, float] = field(default_factory=dict)
    first_kind: RecordKind | None = None
