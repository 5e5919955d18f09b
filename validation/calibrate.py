"""`golden calibrate`: measure a case's noise and set its tolerances.

One commit is rerun under settings that change rounding but not meaning: thread counts, the CPU's
vector instructions, initial weights moved by one unit in the last place. What the reruns differ by,
pooled by class of record and step, is the noise; the tolerance is a multiple of it. Noise grows
along a run (a router choice flips), so tolerances follow the step: tight early, wide late.

The multiple is chosen so that a stated bound holds for the chance that any class of a fresh run is
beyond its tolerance: see `validation.noise`.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from validation.cases import Case
from validation.compare import Comparison, Tolerances, compare, curve_class, event_class
from validation.goldens import Golden
from validation.goldens.environments import identity, in_words
from validation.goldens.store import environment_of
from validation.noise import Noise, Spread, largest_so_far, spread_of
from validation.power.matrix import bitwise_equal
from validation.trace import Trace, load_trace

# Below this, fp32 sums of another order differ without any noise having shown it.
FLOOR = 1e-6
# The norm of all gradients is a sum of squares that an fp32 reduction gets right to 1e-5 (seen
# against fp64, over 26 million of them). Clipping hands its error on to the optimizer's tensors.
CLIPPED_FLOOR = 512 * 2.0**-23
_CLIPPED = ("optimizer:", "curve:grad_norm", "curve:clipped_grad_norm")
DETECTABLE = ("lm_loss", "grad_norm", "learning_rate")
# The chance, with which a detectable effect is seen.
POWER = 0.9


@dataclass(frozen=True)
class Measured:
    """What a calibration found.

    Attributes:
        tolerances: of every floating class.
        noise: largest relative difference seen, by class and step.
        spread: how far a fresh run may go beyond it, and the safety factor that follows.
        lines: a line for each rerun.
    """

    tolerances: Tolerances
    noise: Noise
    spread: Spread
    lines: Sequence[str]

    def record(self) -> dict[str, Any]:
        """What is stored with the golden, beside the tolerances."""
        return {
            "runs": len(self.lines),
            "variants": list(self.lines),
            "safety": self.spread.safety,
            "classes": self.spread.classes,
            "false_alarm_bound": self.spread.bound,
            "power": POWER,
            "noise": {
                name: {str(step): value for step, value in steps.items() if value}
                for name, steps in self.noise.items()
                if any(steps.values())
            },
        }


@dataclass(frozen=True)
class Variant:
    """One setting of the environment that must not change what a run computes.

    Attributes:
        name: for progress and the record.
        environment: variables of the process.
        settings: handed to the case's target.
    """

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def variants(case: Case, lane: str, runs: int) -> list[Variant]:
    """The first `runs` settings of a case on a lane, different kinds first.

    On the CPU: threads {1, 2} x capability {default, the native one}, then one-ulp perturbations of
    the initial weights with other seeds. On a GPU what the case declares as equivalent; the
    perturbations where it declares nothing.
    """
    if lane != "cpu" and case.equivalents:
        return [Variant(name, settings=settings) for name, settings in case.equivalents.items()][
            :runs
        ]
    found: list[Variant] = []
    if lane == "cpu":
        for capability in dict.fromkeys(("default", native_capability())):
            for threads in ("1", "2"):
                found.append(
                    Variant(
                        f"{threads} thread(s), {capability}",
                        {
                            "OMP_NUM_THREADS": threads,
                            "MKL_NUM_THREADS": threads,
                            "ATEN_CPU_CAPABILITY": capability,
                        },
                    )
                )
    perturbed = (
        Variant(f"one-ulp perturbation {seed}", {}, {"perturb_seed": seed})
        for seed in range(1, runs + 1)
    )
    return [*found, *perturbed][:runs]


def native_capability() -> str:
    """The best vector instructions that this CPU has, as ATEN_CPU_CAPABILITY names them."""
    if importlib.util.find_spec("torch") is None:
        return "default"
    import torch

    chosen = os.environ.get("ATEN_CPU_CAPABILITY")
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return capability if chosen is None and capability in ("avx2", "avx512") else "avx2"


def unchanged_base(golden: Golden, source: str, run: Callable[[Variant], Trace]) -> Trace:
    """The trace that reruns are compared with: noise must not take in what the code has changed.

    The golden itself where this source made it; otherwise a rerun, which must pass first.

    Args:
        golden: of the case.
        source: digest of the case's source here.
        run: makes a rerun.

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


def reruns_made_elsewhere(
    golden: Golden, folders: Sequence[Path]
) -> tuple[list[Variant], Callable[[Variant], Trace]]:
    """What run folders hold of a golden's case, for `measure`.

    A folder's `traces/<case>` is a plain run, and `reruns/<case>/<n>` are what `golden calibrate`
    left there. They count if the golden's source made them, or if the folder's plain run
    repeats the golden bit for bit: other code that does the same.

    Args:
        golden: of the environment that the runs were made in.
        folders: run folders, of any machines.

    Raises:
        ValueError: a folder with nothing of the case, of other code, or of another environment.
    """
    found: dict[str, tuple[Variant, Trace]] = {}
    for folder in folders:
        plain = folder / "traces" / golden.case
        others = sorted((folder / "reruns" / golden.case).glob("*/trace.json"))
        heads = [*([plain] if (plain / "trace.json").exists() else []), *(p.parent for p in others)]
        if not heads:
            raise ValueError(f"{folder}: has no run of {golden.case}")
        traces = [load_trace(head) for head in heads]
        repeats = heads[0] == plain and bitwise_equal(golden.trace, traces[0])
        for head, trace in zip(heads, traces, strict=True):
            provenance = trace.provenance
            same = provenance.get("source_digest") == golden.trace.provenance.get("source_digest")
            if not (same or repeats):
                raise ValueError(f"{head}: made by other code, whose plain run is not the golden's")
            if identity(environment_of(provenance)) != identity(golden.environment):
                where = in_words(environment_of(provenance))
                raise ValueError(f"{head}: made in {where}, not in {in_words(golden.environment)}")
            changed = provenance.get("variant", "")
            name = f"{changed or 'plain'}, {folder.name}"
            found[name] = Variant(name, settings={"variant": changed} if changed else {}), trace
    return [variant for variant, _ in found.values()], lambda variant: found[variant.name][1]


def measure(
    base: Trace,
    run: Callable[[Variant], Trace],
    chosen: Sequence[Variant],
    progress: Callable[[str], None],
) -> Measured:
    """Reruns a case under each variant and pools what differs.

    Args:
        base: the trace that reruns are compared with.
        run: makes a rerun.
        chosen: variants.
        progress: told what happens.

    Raises:
        ValueError: a variant changed a discrete record or the set of records: such a setting
            changes meaning, or the case is not deterministic.
    """
    runs: list[Noise] = []
    lines = []
    for number, variant in enumerate(chosen, start=1):
        progress(f"[{number}/{len(chosen)}] {variant.name}")
        comparison = compare(base, run(variant))
        wrong = next((d for d in comparison.divergences if d.relative_error is None), None)
        if wrong is not None and not variant.settings:
            raise ValueError(
                f"{variant.name}: {wrong.module}.{wrong.tensor} at step {wrong.step} changed from "
                f"{wrong.expected} to {wrong.actual}; rounding must not move a discrete record"
            )
        runs.append(noise_of(comparison))
        worst = max((max(steps.values()) for steps in runs[-1].values()), default=0.0)
        lines.append(
            f"{variant.name}: {comparison.identical} of {comparison.compared} records "
            f"bit-identical, largest relative difference {worst:.3g}"
        )
        progress(f"[{number}/{len(chosen)}] {lines[-1]}")
    spread, noise = spread_of(runs, FLOOR), _largest_of(runs)
    return Measured(tolerances_from(noise, spread.safety), noise, spread, lines)


def noise_of(comparison: Comparison) -> Noise:
    """The largest error of a comparison by class and step.

    Raises:
        ValueError: a floating record is not finite.
    """
    noise: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for outcome in comparison.outcomes:
        if not math.isfinite(outcome.error):
            place = outcome.place
            raise ValueError(f"{place.module}.{place.tensor} at step {place.step} is not finite")
        step = outcome.place.step or 0
        steps = noise[outcome.record_class]
        steps[step] = max(steps[step], outcome.error)
    return noise


def _largest_of(runs: Sequence[Noise]) -> Noise:
    noise: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for run in runs:
        for name, steps in run.items():
            for step, value in steps.items():
                noise[name][step] = max(noise[name][step], value)
    return noise


def tolerances_from(noise: Noise, safety: float) -> Tolerances:
    """Tolerances that never shrink along a run: safety x the largest noise so far, and a floor.

    A class in which no rerun moved anything has the floor too: another machine may move it.
    """
    return Tolerances(
        {
            name: {
                step: max(floor_of(name), safety * largest_so_far(steps, step))
                for step in sorted(steps)
            }
            for name, steps in noise.items()
        }
    )


def floor_of(name: str) -> float:
    """The tolerance that a class has at least."""
    return CLIPPED_FLOOR if name.startswith(_CLIPPED) else FLOOR


def detectable_effect(trace: Trace, measured: Measured) -> dict[str, float]:
    """Metric -> the smallest relative change, at every step, that a check sees with `POWER`.

    A change is seen where it exceeds the tolerance by what noise may take from it; at the step
    where that is least. `update_error` is of the optimizer's update to a single parameter, the
    worst of them.
    """
    margin = measured.spread.usual

    def needed(name: str, step: int) -> float:
        noise = largest_so_far(measured.noise.get(name, {}), step)
        return measured.tolerances.of(name, step) + margin * noise

    effect = {}
    for metric, series in trace.curves.items():
        if metric in DETECTABLE or metric.startswith("update_rms/"):
            effect[metric] = min(needed(curve_class(metric), step) for step in series)
    updates = {
        event_class(event.key): event.key.step
        for event in reversed(trace.events)
        if event.key.phase == "optimizer" and event.key.tensor.endswith(".update")
    }
    if updates:
        effect["update_error"] = max(needed(name, step) for name, step in updates.items())
    return effect
