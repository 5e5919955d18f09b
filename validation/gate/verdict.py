"""What a check says: verdicts, the first divergence, and the JSON of the `golden` contract."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from validation.compare import Comparison, Divergence
from validation.compat import StrEnum
from validation.files import jsonable


class Verdict(StrEnum):
    """What a check says of a case, and of all of them.

    PASS; FAIL: behaviour moved; INVALID: the gate could not prove itself; HARDWARE: the machine
    went wrong once; NONDETERMINISTIC: no run is like another; UNFIT: the machine could not serve;
    SKIPPED: a case whose needs are not met here.
    """

    PASS = "PASS"  # noqa: S105 a verdict
    FAIL = "FAIL"
    INVALID = "INVALID"
    HARDWARE = "HARDWARE"
    NONDETERMINISTIC = "NONDETERMINISTIC"
    UNFIT = "UNFIT"
    SKIPPED = "SKIPPED"


EXIT_CODES: Mapping[Verdict, int] = {
    Verdict.PASS: 0,
    Verdict.FAIL: 1,
    Verdict.INVALID: 3,
    Verdict.UNFIT: 4,
    Verdict.HARDWARE: 5,
    Verdict.NONDETERMINISTIC: 5,
}
USAGE_EXIT_CODE = 2

IDENTICAL = "IDENTICAL"
"""A PASS of which every compared record is bit for bit the expected one."""
WITHIN = "WITHIN TOLERANCE"
"""Any other PASS."""

_WORST_FIRST = (
    Verdict.INVALID,
    Verdict.FAIL,
    Verdict.NONDETERMINISTIC,
    Verdict.HARDWARE,
    Verdict.UNFIT,
    Verdict.PASS,
)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst verdict of several cases; INVALID when none ran, since nothing was compared."""
    found = set(verdicts) - {Verdict.SKIPPED}
    return next((v for v in _WORST_FIRST if v in found), Verdict.INVALID)


@dataclass(frozen=True)
class Repeat:
    """What further runs of a failed case have shown.

    Attributes:
        runs: of the same code on this machine, the first included.
        verdict: FAIL where it repeated itself; HARDWARE or NONDETERMINISTIC where it did not;
            UNFIT where the machine had no room for another run.
        first_divergence: the first record in which the first run (`actual`) and the second
            (`expected`) differ; None where they do not, or one of them left no trace.
        message: the same for people.
    """

    runs: int
    verdict: Verdict
    first_divergence: Divergence | None
    message: str

    def to_json(self) -> dict[str, Any]:
        """As `golden check --json` prints it."""
        found = self.first_divergence
        return {
            "runs": self.runs,
            "repeated": self.verdict is Verdict.FAIL,
            "first_divergence": None if found is None else found.to_json(),
        }


@dataclass(frozen=True)
class CaseResult:
    """One case's part of a check.

    Attributes:
        case: its name.
        verdict: its own; quarantine may leave it out of the check's.
        compared: records that both sides have.
        identical: of these, bit-identical ones.
        skipped_because: why it did not run, if so.
        seconds: wall-clock time.
        first_divergence: what moved first.
        message: why it is no PASS, and what else to know.
        largest_ratio: largest error over its tolerance; inf where nothing was allowed; None where
            no floating record was compared.
        largest_at: the record of that ratio; None where every floating record is bit-identical.
        wide: whether it runs in wide arithmetic. This and what follows is not in the JSON.
        calibrated_here: whether its tolerances were calibrated on this type of machine.
        comparison: what the reports draw.
        decoded: text around the first differing token: side ("golden", "actual") -> (before,
            token, after).
        detects: metric -> the smallest relative change that the golden sees.
        if_accepted: the verdict at the tree's own tolerances, where a base's are in force.
        repeat: what further runs of a failed case have shown; None where there were none.
    """

    case: str
    verdict: Verdict
    compared: int = 0
    identical: int = 0
    skipped_because: str | None = None
    seconds: float = 0.0
    first_divergence: Divergence | None = None
    message: str = ""
    largest_ratio: float | None = None
    largest_at: Divergence | None = None
    wide: bool = field(default=False, compare=False)
    calibrated_here: bool | None = field(default=None, compare=False)
    comparison: Comparison | None = field(default=None, compare=False, repr=False)
    decoded: Mapping[str, tuple[str, str, str]] = field(
        default_factory=dict, compare=False, repr=False
    )
    detects: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)
    if_accepted: Verdict | None = field(default=None, compare=False, repr=False)
    repeat: Repeat | None = field(default=None, compare=False, repr=False)

    @property
    def kind(self) -> str:
        """Which PASS it is, IDENTICAL or WITHIN TOLERANCE; empty for anything else."""
        if self.verdict is not Verdict.PASS or not self.compared:
            return ""
        return IDENTICAL if self.identical == self.compared else WITHIN

    def to_json(self) -> dict[str, Any]:
        """The contract's object of a case."""
        divergence, nearest = self.first_divergence, self.largest_at
        document = {
            "case": self.case,
            "verdict": str(self.verdict),
            "compared": self.compared,
            "identical": self.identical,
            "largest_ratio": jsonable(self.largest_ratio),
            "largest_at": None if nearest is None else nearest.to_json(),
            "skipped_because": self.skipped_because,
            "seconds": round(self.seconds, 3),
            "first_divergence": None if divergence is None else divergence.to_json(),
            "message": self.message,
        }
        if self.repeat is not None:
            document["repeat"] = self.repeat.to_json()
        return document


@dataclass(frozen=True)
class Canary:
    """The known bug that a check planted, and whether the gate caught it."""

    fault: str
    caught: bool


@dataclass(frozen=True)
class FreshInputs:
    """Whether a judged change computes what the base does, on inputs that the judge drew.

    Attributes:
        case: the case that was run; empty where none could be.
        held: whether the change's records are the base's; None where that could not be found out.
        message: the first difference, or why it could not be found out.
    """

    case: str
    held: bool | None
    message: str

    def describe(self) -> str:
        """One line for people."""
        if self.held:
            return f"On seeds drawn for this check, {self.case} computes what the base does."
        if self.held is None:
            return f"Fresh inputs were not compared: {self.message}."
        return (
            f"on seeds drawn for this check, {self.case} does not compute what the base does, "
            f"though it matches its golden on the golden's own: {self.message}. Either its records "
            "were copied and not computed, or other inputs show what the golden's do not"
        )


@dataclass(frozen=True)
class Judged:
    """What a verdict by a base's gate rests on, besides the comparison.

    Attributes:
        no_sandbox: why the change's code ran without a sandbox; empty where it had one.
        fresh_inputs: None where the check was no PASS without them.
    """

    no_sandbox: str
    fresh_inputs: FreshInputs | None = None


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
    """A whole check.

    Attributes:
        verdict: the worst of what counts.
        lane: where it ran.
        seconds: wall-clock time.
        environment: what it ran in.
        canary: how the gate proved itself.
        cases: in the order in which they ran.
        message: the verdict's reason in the first line, what else to know in further ones.
        calibrated_here: whether every compared case's tolerances were calibrated on this type of
            machine; None where no golden has a part in it.
        loosened: what of a change would loosen the gate of the base that judges it.
        if_accepted: the verdict if an owner accepted that.
        judged: what the verdict of a base's gate rests on; None without one.
        refused_skips: skipped cases, where none may be (`refuse_skips`); None where they may.
    """

    verdict: Verdict
    lane: str
    seconds: float
    environment: Mapping[str, Any]
    canary: Canary | None
    cases: Sequence[CaseResult]
    message: str = ""
    calibrated_here: bool | None = None
    loosened: Sequence[Loosening] = ()
    if_accepted: Verdict | None = None
    judged: Judged | None = None
    refused_skips: Sequence[str] | None = None

    @property
    def kind(self) -> str:
        """Which PASS it is; IDENTICAL only if each compared case is."""
        if self.verdict is not Verdict.PASS:
            return ""
        same = all(case.kind == IDENTICAL for case in self.cases if case.compared)
        return IDENTICAL if same else WITHIN

    @property
    def nearest(self) -> CaseResult | None:
        """The case with the largest ratio; None where no floating record was compared."""
        known = [case for case in self.cases if case.largest_ratio is not None]
        return max(known, key=lambda case: case.largest_ratio or 0.0, default=None)

    @property
    def exit_code(self) -> int:
        """The process exit code of the verdict."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """The one object that `golden check --json` prints."""
        canary, nearest = self.canary, self.nearest
        document = {
            "verdict": str(self.verdict),
            "lane": self.lane,
            "seconds": round(self.seconds, 3),
            "environment": jsonable(dict(self.environment)),
            "canary": None if canary is None else {"fault": canary.fault, "caught": canary.caught},
            "largest_ratio": None if nearest is None else jsonable(nearest.largest_ratio),
            "calibrated_here": self.calibrated_here,
            "message": self.message,
            "cases": [case.to_json() for case in self.cases],
        }
        if self.judged is not None:
            document["judged"] = asdict(self.judged)
        if self.loosened:
            document["loosened"] = [asdict(loosening) for loosening in self.loosened]
            document["verdict_if_accepted"] = (
                None if self.if_accepted is None else str(self.if_accepted)
            )
        if self.refused_skips is not None:
            document["refused_skips"] = list(self.refused_skips)
        return document


def refuse_skips(result: CheckResult) -> CheckResult:
    """The check where every case must run (`--no-skips`): one that was skipped makes it UNFIT.

    What is worse (FAIL, INVALID) stays. Cases and reasons are named in the message.
    """
    skipped = [case for case in result.cases if case.verdict is Verdict.SKIPPED]
    demanded = replace(result, refused_skips=[case.case for case in skipped])
    if not skipped:
        return demanded
    listed = "; ".join(f"{case.case} ({case.skipped_because})" for case in skipped)
    said = f"--no-skips: {len(skipped)} of {len(result.cases)} cases did not run: {listed}"
    verdict = worst([result.verdict, Verdict.UNFIT])
    # A verdict that was worse before has its own reason, which comes first.
    lines = [said, result.message] if verdict is Verdict.UNFIT else [result.message, said]
    accepted = result.if_accepted
    return replace(
        demanded,
        verdict=verdict,
        message="\n".join(filter(None, lines)),
        if_accepted=None if accepted is None else worst([accepted, Verdict.UNFIT]),
    )
