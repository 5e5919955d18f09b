"""`golden calibrate`: measure a case's noise and set its tolerances.

One commit is rerun under random rounding (`validation.arithmetic.rounding`): each seed is a
machine, or a way to write the code, that could exist. What the reruns differ by, pooled by class of
record and step, is the noise; the tolerance is a multiple of it. Noise grows along a run (a router
choice flips), so tolerances follow the step: tight early, wide late.

A process without torch, or a case that computes nothing with it, is rerun with its initial weights
moved by a unit in the last place, which its adapter must do (`perturb_seed`). On a GPU the reruns
are what the case declares as equivalent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from validation.calibration.derived import by_text, line_of
from validation.calibration.noise import (
    ELSEWHERE,
    EQUIVALENT,
    FACTOR,
    PERTURBED,
    ROUNDING,
    Noise,
    floor_of,
    held_out,
    largest_of,
    largest_so_far,
    noise_of,
    tolerances_from,
)
from validation.cases import Case, leads
from validation.compare import Tolerances, compare
from validation.goldens import Golden
from validation.goldens.calibrated import GRAINS, RERUNS
from validation.goldens.golden import environment_of
from validation.progress import Progress
from validation.running.environment import machine_type
from validation.running.execution import close_parents
from validation.running.notes import Grains, grains_of, longest_sum_of, shaken
from validation.trace import Trace, curve_class, event_class
from validation.trace.storage import records_digest

# The chance, with which a detectable effect is seen.
POWER = 0.9
# Fewer reruns hold no rerun against others that tell anything.
LEAST_RUNS = 3


@dataclass(frozen=True)
class Rerun:
    """A rerun that noise was measured on.

    Attributes:
        name: of its variant.
        machine: type of machine that made it.
        trace: digest of its records; empty where they are not known any more.
        noise: what it differs by.
    """

    name: str
    machine: str
    trace: str
    noise: Noise


@dataclass(frozen=True)
class Measured:
    """What a calibration found.

    Attributes:
        tolerances: of every floating class.
        noise: largest relative difference seen, by class and step.
        grains: of the records that have one.
        largest_sum: terms of the longest sum of the runs.
        source: what the reruns changed.
        held_out: of each rerun, its largest error over tolerances from the others alone.
        calibrated_on: of each type of machine: `machine`, `runs`, `largest_ratio`.
        lines: what is said of each rerun.
        reruns: what each of them differs by.
    """

    tolerances: Tolerances
    noise: Noise
    grains: Grains
    largest_sum: int
    source: str
    held_out: Sequence[float]
    calibrated_on: Sequence[Mapping[str, Any]]
    lines: Sequence[str]
    reruns: Sequence[Rerun]

    @property
    def floor(self) -> float:
        """The least tolerance."""
        return floor_of(self.largest_sum)

    def record(self, golden: Golden) -> dict[str, Any]:
        """What is stored with its golden, beside the tolerances."""
        return {
            "runs": len(self.lines),
            "variants": list(self.lines),
            "source": self.source,
            "factor": FACTOR,
            "largest_sum": self.largest_sum,
            "floor": self.floor,
            "held_out": list(self.held_out),
            "calibrated_on": [dict(entry) for entry in self.calibrated_on],
            "power": POWER,
            # Noise is a distance to one golden: that of another source tree starts anew.
            "source_digest": golden.trace.provenance.get("source_digest"),
            "noise": by_text(self.noise, self.tolerances),
            GRAINS: by_text(self.grains, self.tolerances),
            RERUNS: [
                {
                    "name": rerun.name,
                    "machine": rerun.machine,
                    "trace": rerun.trace,
                    "noise": line_of(rerun.noise, self.tolerances),
                }
                for rerun in self.reruns
            ],
        }


@dataclass(frozen=True)
class Variant:
    """One setting of a rerun that must not change what it computes.

    Attributes:
        name: for progress and the record.
        settings: handed to the case's target.
        rounding_seed: of random rounding.
        source: what it changes.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    rounding_seed: int | None = None
    source: str = ELSEWHERE


def variants(case: Case, on_cpu: bool, runs: int) -> list[Variant]:
    """The settings under which a case is rerun on a lane.

    Without GPUs, seeds of random rounding; with them what the case declares as equivalent, and the
    perturbations where it declares nothing.
    """
    if on_cpu:
        return [
            Variant(f"{ROUNDING} {seed}", rounding_seed=seed, source=ROUNDING)
            for seed in range(1, runs + 1)
        ]
    if case.equivalents:
        return [
            Variant(name, settings, source=EQUIVALENT)
            for name, settings in case.equivalents.items()
        ][:runs]
    return perturbations(runs)


def perturbations(runs: int) -> list[Variant]:
    """Initial weights moved by one unit in the last place, up or down, by seeds from 1."""
    return [
        Variant(f"one-ulp perturbation {seed}", {"perturb_seed": seed}, source=PERTURBED)
        for seed in range(1, runs + 1)
    ]


def unchanged_base(golden: Golden, source: str, run: Callable[[Variant], Trace]) -> Trace:
    """Returns the trace that reruns are compared with, which no change of the code has moved.

    It is the golden itself where this source made it; otherwise a rerun, which must pass first:
    noise must not take in what the code has changed.

    Args:
        golden: of the case.
        source: digest of the case's source here.
        run: makes a rerun.

    Returns:
        The golden's trace, or the rerun's.

    Raises:
        ValueError: the code moves the case beyond its present tolerances.
    """
    if golden.trace.provenance.get("source_digest") == source:
        return golden.trace
    base = run(Variant("unchanged"))
    moved = compare(golden.trace, base, golden.tolerances).divergences
    if moved:
        raise ValueError(
            f"{moved[0].module}.{moved[0].tensor} at step {moved[0].step} is not the golden's: "
            "calibration measures noise, not changes; accept the change first (golden update)"
        )
    return base


def measure_case(
    case: Case,
    on_cpu: bool,
    runs: int,
    base: Trace,
    run: Callable[[Variant], Trace],
    progress: Progress,
    jobs: int = 1,
) -> Measured:
    """Reruns a case under the variants that suit it, and measures its noise.

    Args:
        case: what is rerun.
        on_cpu: whether the lane has no GPUs.
        runs: how often, at most.
        base: the trace that reruns are compared with.
        run: makes a rerun.
        progress: told what happens.
        jobs: reruns at a time.

    Returns:
        Noise, tolerances and what the reruns showed.

    Raises:
        ValueError: see `measure`.
    """
    chosen = variants(case, on_cpu, runs)
    made: dict[str, Trace] = {}
    if chosen[0].rounding_seed is not None:
        first = run(chosen[0])
        if shaken(first):
            made[chosen[0].name] = first
        else:
            progress.message(
                "the run computes nothing with torch: its initial weights are moved instead"
            )
            chosen = perturbations(runs)
    return measure(
        base, lambda variant: made.pop(variant.name, None) or run(variant), chosen, progress, jobs
    )


def measure(
    base: Trace,
    run: Callable[[Variant], Trace],
    chosen: Sequence[Variant],
    progress: Progress,
    jobs: int = 1,
) -> Measured:
    """Reruns a case under each variant and pools what differs.

    Args:
        base: the trace that reruns are compared with.
        run: makes a rerun.
        chosen: variants.
        progress: told what happens.
        jobs: reruns at a time.

    Returns:
        Noise, tolerances and what the reruns showed.

    Raises:
        ValueError: a variant changed a discrete record or the set of records: such a setting
            changes meaning, or the case is not deterministic; or perturbed weights changed nothing.
    """
    reruns: list[Rerun] = []
    lines, made = [], [base]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for number, (variant, trace) in enumerate(
                zip(chosen, pool.map(run, chosen), strict=True), start=1
            ):
                rerun, said = compared(base, trace, variant)
                reruns.append(rerun)
                made.append(trace)
                lines.append(f"{variant.name}: {said}")
                progress.ended(number, len(chosen), variant.name, said)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            close_parents()  # so that the threads' runs end now
            raise
    runs = [rerun.noise for rerun in reruns]
    if runs and all(variant.source == PERTURBED for variant in chosen):
        _refuse_ignored(runs)
    noise, grains, largest_sum = largest_of(runs), grains_of(made), longest_sum_of(made)
    floor = floor_of(largest_sum)
    ratios = held_out(runs, floor, grains)
    return Measured(
        tolerances=tolerances_from(noise, floor, grains),
        noise=noise,
        grains=grains,
        largest_sum=largest_sum,
        source=" and ".join(sorted({variant.source for variant in chosen})),
        held_out=ratios,
        calibrated_on=by_machine([rerun.machine for rerun in reruns], ratios),
        lines=lines,
        reruns=reruns,
    )


def compared(base: Trace, trace: Trace, variant: Variant) -> tuple[Rerun, str]:
    """Measures what a rerun differs by.

    Args:
        base: the trace that reruns are compared with.
        trace: of the rerun.
        variant: what the rerun varied.

    Returns:
        The rerun with its noise, and a line that says how the rerun compares.

    Raises:
        ValueError: see `measure`.
    """
    comparison = compare(base, trace)
    wrong = next((d for d in comparison.divergences if d.relative_error is None), None)
    if wrong is not None and not variant.settings:
        raise ValueError(
            f"{variant.name}: {wrong.module}.{wrong.tensor} at step {wrong.step} changed from "
            f"{wrong.expected} to {wrong.actual}; rounding must not move a discrete record"
        )
    noise = noise_of(comparison)
    worst = max((max(steps.values()) for steps in noise.values()), default=0.0)
    said = (
        f"{comparison.identical} of {comparison.compared} records "
        f"bit-identical, largest relative difference {worst:.3g}"
    )
    machine = machine_type(environment_of(trace.provenance))
    return Rerun(variant.name, machine, records_digest(trace), noise), said


def _refuse_ignored(runs: Sequence[Noise]) -> None:
    floating = any(runs[0].values())
    if floating and not any(
        value for run in runs for steps in run.values() for value in steps.values()
    ):
        raise ValueError(
            f"no floating record moved in {len(runs)} reruns with the setting perturb_seed, so "
            "that nothing was measured: the case's target ignores it. Let it move every initial "
            "weight by one unit in the last place, up or down at random with this seed"
        )


def by_machine(
    machines: Sequence[str], ratios: Sequence[float], before: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Runs and their largest ratio by type of machine, those counted before included."""
    found = {str(entry["machine"]): dict(entry) for entry in before}
    for machine, ratio in zip(machines, ratios, strict=True):
        entry = found.setdefault(machine, {"machine": machine, "runs": 0, "largest_ratio": 0.0})
        entry["runs"] += 1
        entry["largest_ratio"] = max(float(entry["largest_ratio"]), ratio)
    return list(found.values())


def detectable_effect(case: Case, trace: Trace, measured: Measured) -> dict[str, float]:
    """Computes the smallest relative change of each metric that a check sees with `POWER`.

    A change is seen where it exceeds the tolerance by what noise may take from it: at most the
    largest that the reruns showed, which a fresh run exceeds once in as many runs as there were
    and one, and half of these times to the other side. At the step where that is least.
    `update_error` is of the optimizer's update to a single parameter, the worst of them.

    Args:
        case: says which metrics lead.
        trace: of its run.
        measured: noise and tolerances.

    Returns:
        Metric -> the smallest relative change, made at every step.
    """

    def needed(name: str, step: int) -> float:
        noise = largest_so_far(measured.noise.get(name, {}), step)
        return measured.tolerances.of(name, step) + noise

    effect = {}
    for key, series in trace.curves.items():
        if leads(case, str(key)):
            effect[str(key)] = min(needed(curve_class(key), step) for step in series)
    updates = {
        event_class(event.key): event.key.step
        for event in reversed(trace.events)
        if event.key.phase == "optimizer" and event.key.tensor.endswith(".update")
    }
    if updates:
        effect["update_error"] = max(needed(name, step) for name, step in updates.items())
    return effect
