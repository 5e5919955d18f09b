"""Runs the kill matrix: each bug, no-op control and harmless change in a process of its own.

A kill counts only at the golden's frozen tolerances, in an environment that calibration never saw:
another thread count, other vector instructions and perturbed initial weights, all at once (of
these only the weights move what is computed in wide arithmetic); on a lane with GPUs, in the
golden's own settings. A run that crashes is no kill: the gate compared nothing. In the same
environment every case must pass without a fault, and so must every benign change and every bug's
no-op control, which is the same patch without effect.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from validation.cases import Benign, Case, Fault
from validation.compare import Comparison, compare
from validation.config import lane_of
from validation.goldens import Golden
from validation.power.matrix import (
    NO_OP,
    Harmless,
    Kill,
    Matrix,
    Pass,
    Sighting,
    bitwise_equal,
)
from validation.power.results import Results
from validation.progress import Progress
from validation.running.execution import RunError, RunOptions, close_parents, run_case

# A perturbation that no calibration uses: it counts its seeds up from 1.
PERTURBATION = 1_000_003

# No-op controls change nothing, so many are planted in one run; after a FAIL each is tried alone.
_NO_OPS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class MatrixPlan:
    """What to plant, and what to judge by.

    Attributes:
        root: the repository.
        lane: lane of the goldens.
        goldens: by case; only cases with a golden can kill.
        cases: by name.
        full: try every case, whole, on every fault, not only until the first kill.
        jobs: runs at a time.
        log: receives what the runs print.
        results: of finished runs, which are not made again.
    """

    root: Path
    lane: str
    goldens: Mapping[str, Golden]
    cases: Mapping[str, Case]
    full: bool
    jobs: int
    log: Path
    results: Results


def run_matrix(
    plan: MatrixPlan,
    faults: Sequence[Fault],
    benign: Sequence[Benign],
    progress: Progress,
) -> Matrix:
    """Plants everything, each in a run of its own, and gathers what the gate says."""
    telling, ending = threading.Lock(), threading.Event()

    def tell(text: str) -> None:
        with telling:
            progress.message(text)

    def kill(fault: Fault) -> Kill:
        done = plan.results.kill(fault)
        if done is None:
            done = _try_fault(plan, fault)
            if not ending.is_set():
                plan.results.keep_kill(done)
        verdict = f"killed by {done.case} at {done.localised}" if done.killed else "SURVIVED"
        verdict = "equivalent" if done.equivalent else verdict
        tell(f"{fault.id}: {verdict} {done.note}".rstrip())
        return done

    def must_pass(entry: Harmless) -> list[Pass]:
        found = plan.results.passes(entry)
        if found is None:
            found = _try_pass(plan, entry)
            if not ending.is_set():
                plan.results.keep_passes(entry, found)
        for done in found:
            tell(f"{done.label}: {'passes' if done.passed else 'FALSE ALARM'} {done.note}".rstrip())
        return found

    entries = _harmless(plan, faults, benign)
    with ThreadPoolExecutor(plan.jobs) as pool:
        try:
            passes = [done for found in pool.map(must_pass, entries) for done in found]
            kills = list(pool.map(kill, faults))
        except BaseException:
            ending.set()
            pool.shutdown(wait=False, cancel_futures=True)
            close_parents()  # so that the threads' runs end now
            raise
    kills.sort(key=lambda k: (k.killed, k.equivalent, k.fault.category, k.fault.id))
    return Matrix(kills, passes)


def unseen_environment(golden: Golden) -> dict[str, str]:
    """Variables that differ from the golden's environment in everything harmless."""
    recorded = golden.trace.provenance.get("environment", {})
    threads = 1 if recorded.get("threads") != 1 else min(2, os.cpu_count() or 1)
    chosen = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if str(recorded.get("cpu_isa")).upper() != "DEFAULT":
        chosen["ATEN_CPU_CAPABILITY"] = "default"
    return chosen


def _harmless(
    plan: MatrixPlan, faults: Sequence[Fault], benign: Sequence[Benign]
) -> list[Harmless]:
    needed = {fault.shown_by(plan.lane) for fault in faults} | {change.case for change in benign}
    entries = [Harmless({f"unchanged/{n}": None}, n) for n in sorted(needed & plan.goldens.keys())]
    entries += [Harmless({b.id: b.plant}, b.case, b.steps, b.description) for b in benign]
    controls: defaultdict[tuple[str, int | None], dict[str, str | None]] = defaultdict(dict)
    for fault in faults:
        if fault.no_op is not None:
            place = fault.shown_by(plan.lane), fault.canary_steps
            controls[place][f"{NO_OP}/{fault.id}"] = fault.no_op
    for (case, steps), ids in controls.items():
        entries += [Harmless(part, case, steps) for part in _parts(ids, _NO_OPS_AT_ONCE)]
    return entries


def _parts(ids: Mapping[str, str | None], size: int) -> Iterable[dict[str, str | None]]:
    names = list(ids)
    for start in range(0, len(names), size):
        yield {name: ids[name] for name in names[start : start + size]}


def _try_fault(plan: MatrixPlan, fault: Fault) -> Kill:
    own = fault.shown_by(plan.lane)
    names = [own, *sorted(plan.goldens.keys() - {own})]
    if fault.equivalent is not None:
        names = [own]
    attempts: list[tuple[str, int | None]] = [(name, None) for name in names]
    # The first case is cheapest cut short; most faults show within the first steps.
    if fault.canary_steps and not plan.full:
        attempts.insert(0, (own, fault.canary_steps))
    sightings, notes = [], []
    for name, steps in attempts:
        if name not in plan.goldens:
            notes.append(f"{name} has no golden")
            continue
        try:
            comparison = _compare(plan, name, [fault.plant], steps)
        except RunError as error:
            notes.append(f"{name}: {str(error).splitlines()[-1]}")
            continue
        catch = comparison.caught
        if catch is not None:
            sightings.append(Sighting(name, catch.first, catch.margin, steps))
            if not plan.full:
                break
    if sightings:
        return Kill(fault, sightings, names[-1])
    return Kill(fault, (), names[-1], "; ".join(notes), _differs(plan, fault))


def _differs(plan: MatrixPlan, fault: Fault) -> bool | None:
    """Whether a survivor's trace differs from a clean one's at all; None if it left no trace."""
    case = plan.cases[fault.shown_by(plan.lane)]
    try:
        clean, planted = (
            run_case(case, RunOptions(lane=plan.lane, fault=plant), plan.root, plan.log)
            for plant in (None, fault.plant)
        )
    except RunError:
        return None
    return not bitwise_equal(clean, planted)


def _try_pass(plan: MatrixPlan, entry: Harmless) -> list[Pass]:
    problem = _problem(plan, entry)
    if problem and len(entry.ids) > 1:
        alone = (
            Harmless({name: plant}, entry.case, entry.steps) for name, plant in entry.ids.items()
        )
        return [done for single in alone for done in _try_pass(plan, single)]
    return [Pass(name, not problem, problem, entry.description) for name in entry.ids]


def _problem(plan: MatrixPlan, entry: Harmless) -> str:
    """What differed first, or why nothing was compared; empty if all is well."""
    if entry.case not in plan.goldens:
        return f"{entry.case} has no golden"
    plants = [plant for plant in entry.ids.values() if plant is not None]
    try:
        comparison = _compare(plan, entry.case, plants, entry.steps)
    except RunError as error:
        return str(error).splitlines()[-1]
    if comparison.divergences:
        first = comparison.divergences[0]
        return f"step {first.step} {first.phase} {first.module}.{first.tensor}"
    return "" if comparison.compared else "nothing was compared"


def _compare(plan: MatrixPlan, name: str, plants: Sequence[str], steps: int | None) -> Comparison:
    golden, on_gpus = plan.goldens[name], lane_of(plan.root, plan.lane).on_gpus
    # On a GPU weights are bf16, in whose last place a bug could hide.
    settings: dict[str, Any] = {} if on_gpus else {"perturb_seed": PERTURBATION}
    if steps is not None:
        settings["stop_after"] = steps
    environment = {} if on_gpus else unseen_environment(golden)
    options = RunOptions(lane=plan.lane, settings=settings, fault=plants, environment=environment)
    trace = run_case(plan.cases[name], options, plan.root, plan.log)
    expected = golden.trace if steps is None else golden.trace.up_to(steps)
    return compare(expected, trace, golden.tolerances)
