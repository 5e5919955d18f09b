"""The kill matrix: what became of every planted bug, no-op control and harmless change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from validation.cases import Fault
from validation.compare import Divergence
from validation.rates import lower_bound, upper_bound
from validation.trace import Trace

# A bug should show within so many training steps.
EARLY_STEPS = 3

# The kind of no-op controls, which their ids begin with. JSON results have this name for them.
NO_OP = "twin"
_CONTROLS_PASSED = "no-op controls passed"
_STORED = {_CONTROLS_PASSED: "twins passed"}


@dataclass(frozen=True)
class Sighting:
    """A case that failed with a bug planted.

    Attributes:
        case: its name.
        first: the first divergence.
        margin: error over tolerance of the worst record, inf where a fact differs; None in results
            that were written before margins were.
        steps: training steps after which the run was stopped; None where it was whole.
    """

    case: str
    first: Divergence
    margin: float | None = None
    steps: int | None = None

    @property
    def comparator(self) -> str:
        """Kind of the record that differs first."""
        return str(self.first.kind)

    @property
    def place(self) -> str:
        """Where the gate says that the bug is."""
        return ".".join(part for part in (self.first.module, self.first.tensor) if part)


@dataclass(frozen=True)
class Kill:
    """What became of one fault.

    Attributes:
        fault: what was planted.
        sightings: cases that failed, the deciding one first; empty for a survivor.
        tried: the last case that was tried.
        note: why it survived.
        differs: of a survivor, whether its trace differs at all from a clean one's, bit by bit.
    """

    fault: Fault
    sightings: Sequence[Sighting] = ()
    tried: str = ""
    note: str = ""
    differs: bool | None = None

    @property
    def killed(self) -> bool:
        """Whether a case failed."""
        return bool(self.sightings)

    @property
    def equivalent(self) -> bool:
        """Whether it is declared to change nothing, and its trace is a clean one's."""
        return self.fault.equivalent is not None and not self.killed and self.differs is False

    @property
    def case(self) -> str:
        """The case that killed it, or the last one tried."""
        return self.sightings[0].case if self.sightings else self.tried

    @property
    def localised(self) -> str | None:
        """Where the gate says that the bug is."""
        return self.sightings[0].place if self.sightings else None

    @property
    def step(self) -> int | None:
        """Training step of the first divergence; 0 is before training."""
        return self.sightings[0].first.step if self.sightings else None

    @property
    def margin(self) -> float | None:
        """How plainly it was caught: error over tolerance of the worst record."""
        return self.sightings[0].margin if self.sightings else None

    @property
    def localised_right(self) -> bool:
        """Whether that is the component, or the phase, which the fault is in."""
        if not self.sightings:
            return False
        component = self.fault.component
        return component in (self.localised or "") or component == self.sightings[0].first.phase

    def to_json(self) -> dict[str, Any]:
        """The contract's object of a fault."""
        return {
            "id": self.fault.id,
            "category": self.fault.category,
            "component": self.fault.component,
            "killed": self.killed,
            "case": self.case,
            "step": self.step,
            "localised": self.localised,
            "localised_right": self.localised_right,
        }


@dataclass(frozen=True)
class Harmless:
    """Plants that must pass, in one run of a case.

    Attributes:
        ids: of the entries, with the plant of each; None plants nothing.
        case: name of the case.
        steps: training steps to run; None is all.
        description: what is changed.
    """

    ids: Mapping[str, str | None]
    case: str
    steps: int | None = None
    description: str = ""


@dataclass(frozen=True)
class Pass:
    """What became of a change that must pass: a benign one, a bug's no-op control, or none at all.

    Attributes:
        id: of the benign change; `twin/<fault>` for a no-op control; `unchanged/<case>` for a clean
            run.
        passed: whether nothing differed beyond tolerance.
        note: what differed first.
        description: what was changed.
    """

    id: str
    passed: bool
    note: str = ""
    description: str = ""

    @property
    def kind(self) -> str:
        """What sort of change this is: `unchanged`, `NO_OP` or `benign`."""
        prefix, slash, _ = self.id.partition("/")
        return prefix if slash and prefix in ("unchanged", NO_OP) else "benign"

    @property
    def subject(self) -> str:
        """Id of the benign change or of the fault; name of the case of a clean run."""
        return self.id if self.kind == "benign" else self.id.partition("/")[2]

    @property
    def label(self) -> str:
        """What was planted, in words."""
        return f"no-op control of {self.subject}" if self.kind == NO_OP else self.id


@dataclass(frozen=True)
class Matrix:
    """Every fault, survivors first, and everything that must pass.

    Attributes:
        kills: what became of the faults.
        passes: what became of the rest.
        provenance: of the code, the goldens and the machine that say so.
    """

    kills: Sequence[Kill]
    passes: Sequence[Pass] = field(default=())
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def survivors(self) -> list[Kill]:
        """Faults that no case caught, proved equivalents left out."""
        return [kill for kill in self.kills if not kill.killed and not kill.equivalent]

    @property
    def equivalents(self) -> list[Kill]:
        """Faults whose trace is proved to be a clean one's."""
        return [kill for kill in self.kills if kill.equivalent]

    @property
    def killed(self) -> list[Kill]:
        """Faults that some case caught."""
        return [kill for kill in self.kills if kill.killed]

    @property
    def false_alarms(self) -> list[Pass]:
        """Changes that must pass, and did not."""
        return [entry for entry in self.passes if not entry.passed]

    def smallest_margins(self, count: int = 10) -> list[Kill]:
        """The kills that were nearest to none, the nearest first."""
        known = [kill for kill in self.killed if kill.margin is not None]
        return sorted(known, key=lambda kill: (kill.margin, kill.fault.id))[:count]

    def harmless(self, kind: str) -> list[Pass]:
        """Entries of one kind: `unchanged`, `NO_OP`, or `benign`."""
        return [entry for entry in self.passes if entry.kind == kind]

    def to_json(self) -> dict[str, Any]:
        """The one object that `golden faults --json` prints."""
        return {
            "faults": [kill.to_json() for kill in self.kills],
            "benign": [{"id": entry.id, "passed": entry.passed} for entry in self.passes],
            "killed": len(self.killed),
            "total": len(self.kills),
            "false_alarms": len(self.false_alarms),
        }

    def details(self) -> dict[str, Any]:
        """What the run folder keeps: the above, and everything that the pages show."""
        faults = [
            {
                **kill.to_json(),
                "margin": kill.margin,
                "imitates": kill.fault.imitates,
                "equivalent": kill.fault.equivalent if kill.equivalent else None,
                "differs_bitwise": True if kill.killed else kill.differs,
                "note": kill.note,
                "sightings": [
                    {
                        "case": s.case,
                        "step": s.first.step,
                        "phase": s.first.phase,
                        "comparator": s.comparator,
                        "margin": s.margin,
                        "localised": s.place,
                    }
                    for s in kill.sightings
                ],
            }
            for kill in self.kills
        ]
        benign = [
            {"id": p.id, "passed": p.passed, "note": p.note, "description": p.description}
            for p in self.passes
        ]
        return {
            **self.to_json(),
            "faults": faults,
            "benign": benign,
            "scores": {_STORED.get(name, name): text for name, text in scores(self).items()},
            "provenance": self.provenance,
        }


def scores(matrix: Matrix) -> dict[str, str]:
    """The figures of a matrix in words, with exact one-sided 95 % bounds."""
    total, killed = len(matrix.kills), len(matrix.killed)
    able = total - len(matrix.equivalents)
    early = sum(1 for kill in matrix.killed if (kill.step or 0) <= EARLY_STEPS)
    right = sum(1 for kill in matrix.killed if kill.localised_right)
    bitwise = sum(1 for kill in matrix.kills if kill.killed or kill.differs)
    rows = {
        "killed, of all": _at_least(killed, total),
        "killed, equivalents left out": _at_least(killed, able),
        "killed if bits counted": _at_least(bitwise, total),
        "first divergence in the right place": _at_least(right, killed),
        f"killed within {EARLY_STEPS} steps": _at_least(early, killed),
    }
    for kind, name in (
        ("benign", "harmless changes passed"),
        (NO_OP, _CONTROLS_PASSED),
        ("unchanged", "clean runs passed"),
    ):
        entries = matrix.harmless(kind)
        if entries:
            alarms = sum(not entry.passed for entry in entries)
            rows[name] = (
                f"{len(entries) - alarms} of {len(entries)} "
                f"(false alarms at most {upper_bound(alarms, len(entries)):.1%})"
            )
    return rows


def _at_least(hits: int, runs: int) -> str:
    if not runs:
        return "0 of 0"
    return f"{hits} of {runs} ({hits / runs:.1%}, at least {lower_bound(hits, runs):.1%})"


def bitwise_equal(one: Trace, other: Trace) -> bool:
    """Whether two traces hold the same records, bit for bit."""
    from validation.compare import compare

    comparison = compare(one, other, exact=True)
    return not comparison.divergences and comparison.identical == comparison.compared > 0
