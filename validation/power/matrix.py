"""`golden faults`: plant each known bug, run the gate, and see whether and where it is caught.

A kill counts only at the golden's frozen tolerances, in an environment that calibration never saw:
another thread count, other vector instructions and perturbed initial weights, all at once. A run
that crashes is no kill: the gate compared nothing. In the same environment every case must pass
without a fault, and so must every benign change.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from validation.cases import Benign, Case, Fault
from validation.compare import MISSING, Comparison, compare
from validation.execution import RunError, RunOptions, close_parents, run_case
from validation.goldens import Golden
from validation.verdict import Divergence

# A perturbation that no calibration uses: it counts its seeds up from 1.
PERTURBATION = 1_000_003


@dataclass(frozen=True)
class Kill:
    """What became of one fault.

    Attributes:
        fault: what was planted.
        killed: whether a case failed.
        case: the case that killed it, or the last one tried.
        first: where it was first seen.
        note: why it survived.
    """

    fault: Fault
    killed: bool
    case: str
    first: Divergence | None = None
    note: str = ""

    @property
    def localised(self) -> str | None:
        """Where the gate says that the bug is."""
        if self.first is None:
            return None
        return ".".join(part for part in (self.first.module, self.first.tensor) if part)

    @property
    def localised_right(self) -> bool:
        """Whether that is the component which the fault is in."""
        return self.localised is not None and self.fault.component in self.localised

    def to_json(self) -> dict[str, Any]:
        """The contract's object of a fault."""
        return {
            "id": self.fault.id,
            "category": self.fault.category,
            "component": self.fault.component,
            "killed": self.killed,
            "case": self.case,
            "step": None if self.first is None else self.first.step,
            "localised": self.localised,
            "localised_right": self.localised_right,
        }


@dataclass(frozen=True)
class Pass:
    """What became of a change that must pass: a benign one, or none at all.

    Attributes:
        id: of the benign change; `unchanged/<case>` for a clean run.
        passed: whether nothing differed beyond tolerance.
        note: what differed first.
    """

    id: str
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class Matrix:
    """Every fault and every benign change; survivors first."""

    kills: Sequence[Kill]
    passes: Sequence[Pass] = field(default=())

    @property
    def survivors(self) -> list[Kill]:
        """Faults that no case caught."""
        return [kill for kill in self.kills if not kill.killed]

    @property
    def false_alarms(self) -> list[Pass]:
        """Changes that must pass, and did not."""
        return [entry for entry in self.passes if not entry.passed]

    def to_json(self) -> dict[str, Any]:
        """The one object that `golden faults --json` prints."""
        return {
            "faults": [kill.to_json() for kill in self.kills],
            "benign": [{"id": entry.id, "passed": entry.passed} for entry in self.passes],
            "killed": len(self.kills) - len(self.survivors),
            "total": len(self.kills),
            "false_alarms": len(self.false_alarms),
        }


@dataclass(frozen=True, kw_only=True)
class MatrixPlan:
    """What to plant, and what to judge by.

    Attributes:
        root: the repository.
        lane: lane of the goldens.
        goldens: by case; only cases with a golden can kill.
        cases: by name.
        full: try every case on every fault, not only until the first kill.
        jobs: runs at a time.
        log: receives what the runs print.
    """

    root: Path
    lane: str
    goldens: Mapping[str, Golden]
    cases: Mapping[str, Case]
    full: bool
    jobs: int
    log: Path


def run_matrix(
    plan: MatrixPlan,
    faults: Sequence[Fault],
    benign: Sequence[Benign],
    progress: Callable[[str], None],
) -> Matrix:
    """Plants everything, each in a run of its own, and collects what the gate says."""
    telling = threading.Lock()

    def tell(text: str) -> None:
        with telling:
            progress(text)

    def kill(fault: Fault) -> Kill:
        done = _try_fault(plan, fault)
        verdict = f"killed by {done.case} at {done.localised}" if done.killed else "SURVIVED"
        tell(f"{fault.id}: {verdict} {done.note}".rstrip())
        return done

    def must_pass(entry: tuple[str, str, str | None]) -> Pass:
        done = _try_pass(plan, *entry)
        tell(f"{done.id}: {'passes' if done.passed else 'FALSE ALARM'} {done.note}".rstrip())
        return done

    needed = {fault.case for fault in faults} | {change.case for change in benign}
    entries: list[tuple[str, str, str | None]] = [
        (f"unchanged/{name}", name, None) for name in sorted(needed & plan.goldens.keys())
    ]
    entries += [(change.id, change.case, change.plant) for change in benign]
    with ThreadPoolExecutor(plan.jobs) as pool:
        try:
            passes = list(pool.map(must_pass, entries))
            kills = list(pool.map(kill, faults))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            close_parents()  # so that the threads' runs end now
            raise
    return Matrix(sorted(kills, key=lambda k: (k.killed, k.fault.category, k.fault.id)), passes)


def unseen_environment(golden: Golden) -> dict[str, str]:
    """Variables that differ from the golden's environment in everything harmless."""
    recorded = golden.trace.provenance.get("environment", {})
    threads = 1 if recorded.get("threads") != 1 else min(2, os.cpu_count() or 1)
    chosen = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if str(recorded.get("cpu_isa")).upper() != "DEFAULT":
        chosen["ATEN_CPU_CAPABILITY"] = "default"
    return chosen


def _try_fault(plan: MatrixPlan, fault: Fault) -> Kill:
    names = [fault.case, *sorted(plan.goldens.keys() - {fault.case})]
    found: Kill | None = None
    notes = []
    # The first case is cheapest cut short; most faults show within the first steps.
    attempts: list[tuple[str, int | None]] = [(name, None) for name in names]
    if fault.canary_steps:
        attempts.insert(0, (names[0], fault.canary_steps))
    for name, steps in attempts:
        if name not in plan.goldens:
            notes.append(f"{name} has no golden")
            continue
        try:
            comparison = _compare(plan, name, fault.plant, steps)
        except RunError as error:
            notes.append(f"{name}: {str(error).splitlines()[-1]}")
            continue
        first = next(
            (d for d in comparison.divergences if MISSING not in (d.expected, d.actual)),
            None,
        )
        if first is not None and found is None:
            found = Kill(fault, True, name, first)
            if not plan.full:
                return found
    return found or Kill(fault, False, names[-1], note="; ".join(notes))


def _try_pass(plan: MatrixPlan, name: str, case: str, plant: str | None) -> Pass:
    if case not in plan.goldens:
        return Pass(name, False, f"{case} has no golden")
    try:
        comparison = _compare(plan, case, plant, None)
    except RunError as error:
        return Pass(name, False, str(error).splitlines()[-1])
    if comparison.divergences:
        first = comparison.divergences[0]
        return Pass(name, False, f"step {first.step} {first.phase} {first.module}.{first.tensor}")
    return Pass(name, comparison.compared > 0)


def _compare(plan: MatrixPlan, name: str, plant: str | None, steps: int | None) -> Comparison:
    golden = plan.goldens[name]
    settings: dict[str, Any] = {"perturb_seed": PERTURBATION}
    if steps is not None:
        settings["stop_after"] = steps
    environment = unseen_environment(golden) if plan.lane == "cpu" else {}
    options = RunOptions(lane=plan.lane, settings=settings, fault=plant, environment=environment)
    trace = run_case(plan.cases[name], options, plan.root, plan.log)
    expected = golden.trace if steps is None else golden.trace.up_to(steps)
    return compare(expected, trace, golden.tolerances)
