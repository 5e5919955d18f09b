"""What a check says: verdicts, the first divergence, and the JSON of the `golden` contract."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from validation.compare import Comparison


class Verdict(StrEnum):
    """PASS; FAIL: behaviour moved; INVALID: the gate could not prove itself; UNFIT: the machine
    could not serve; SKIPPED: a case whose needs are not met here."""

    PASS = "PASS"  # noqa: S105 a verdict
    FAIL = "FAIL"
    INVALID = "INVALID"
    UNFIT = "UNFIT"
    SKIPPED = "SKIPPED"


EXIT_CODES: Mapping[Verdict, int] = {
    Verdict.PASS: 0,
    Verdict.FAIL: 1,
    Verdict.INVALID: 3,
    Verdict.UNFIT: 4,
}
USAGE_EXIT_CODE = 2

_WORST_FIRST = (Verdict.INVALID, Verdict.FAIL, Verdict.UNFIT, Verdict.PASS)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst verdict of several cases; INVALID when none ran, since nothing was compared."""
    found = set(verdicts) - {Verdict.SKIPPED}
    return next((v for v in _WORST_FIRST if v in found), Verdict.INVALID)


@dataclass(frozen=True)
class Divergence:
    """The first record, in execution order, that differs beyond its tolerance.

    Attributes:
        step: training step, from 1; 0 before training; None outside of it.
        micro_batch: within the step, from 0.
        phase: data, init, forward, backward, reduction, optimizer or resume.
        module: fully qualified name; `training` for curves.
        tensor: tensor of the module, or metric of the curve.
        rank: global rank.
        offset: index of the first differing element of a discrete sequence.
        expected: the golden's value.
        actual: the run's value.
        relative_error: distance relative to the golden; None for discrete records.
        tolerance: what it was allowed to be; None for discrete records.
    """

    step: int | None = None
    micro_batch: int | None = None
    phase: str | None = None
    module: str | None = None
    tensor: str | None = None
    rank: int | None = None
    offset: int | None = None
    expected: Any = None
    actual: Any = None
    relative_error: float | None = None
    tolerance: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The contract's `first_divergence` object."""
        return {name: jsonable(getattr(self, name)) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class CaseResult:
    """One case's part of a check; `comparison`, `decoded` and `detects` are what the reports show
    and are not in the JSON. `decoded` holds the text around the first differing token: side
    ("golden", "actual") -> (before, token, after); `detects` the smallest relative change of a
    metric that the golden sees: metric -> change. `if_accepted` is the verdict at the tolerances
    of the tree itself, where a base's are in force."""

    case: str
    verdict: Verdict
    compared: int = 0
    identical: int = 0
    skipped_because: str | None = None
    seconds: float = 0.0
    first_divergence: Divergence | None = None
    message: str = ""
    comparison: Comparison | None = field(default=None, compare=False, repr=False)
    decoded: Mapping[str, tuple[str, str, str]] = field(
        default_factory=dict, compare=False, repr=False
    )
    detects: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)
    if_accepted: Verdict | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The contract's object of a case."""
        divergence = self.first_divergence
        return {
            "case": self.case,
            "verdict": str(self.verdict),
            "compared": self.compared,
            "identical": self.identical,
            "skipped_because": self.skipped_because,
            "seconds": round(self.seconds, 3),
            "first_divergence": None if divergence is None else divergence.to_json(),
            "message": self.message,
        }


@dataclass(frozen=True)
class Canary:
    """The known bug that a check planted, and whether the gate caught it."""

    fault: str
    caught: bool


@dataclass(frozen=True)
class Loosening:
    """Something of a change that would loosen the gate after its merge.

    Attributes:
        kind: `tolerance` or `quarantine`.
        case: whose; empty where a file cannot be read.
        text: what is looser, and who says why.
        acceptable: whether an owner may accept it at all.
    """

    kind: str
    case: str
    text: str
    acceptable: bool = True


@dataclass(frozen=True)
class CheckResult:
    """A whole check; `loosened` is what of a change would loosen the gate of the base that judges
    it, `if_accepted` the verdict if an owner accepted that."""

    verdict: Verdict
    lane: str
    seconds: float
    environment: Mapping[str, Any]
    canary: Canary | None
    cases: Sequence[CaseResult]
    message: str = ""
    loosened: Sequence[Loosening] = ()
    if_accepted: Verdict | None = None

    @property
    def exit_code(self) -> int:
        """The process exit code of the verdict."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """The one object that `golden check --json` prints."""
        canary = self.canary
        document = {
            "verdict": str(self.verdict),
            "lane": self.lane,
            "seconds": round(self.seconds, 3),
            "environment": jsonable(dict(self.environment)),
            "canary": None if canary is None else {"fault": canary.fault, "caught": canary.caught},
            "cases": [case.to_json() for case in self.cases],
        }
        if self.loosened:
            document["loosened"] = [asdict(loosening) for loosening in self.loosened]
            document["verdict_if_accepted"] = (
                None if self.if_accepted is None else str(self.if_accepted)
            )
        return document


def jsonable(value: Any) -> Any:
    """Replaces NaN and infinities, which JSON lacks, by "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    return value
