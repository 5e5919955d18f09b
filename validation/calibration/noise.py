"""What reruns differ by, the tolerances that follow, and how often these would have been wrong.

A tolerance is a fixed multiple of the largest difference that any rerun showed in its class, up to
a few steps later, and never below what arithmetic itself leaves open: a floor that grows with the
longest sum of the run, plus the grain of the value.

Whether the multiple is enough is counted, not modelled: each rerun is held against tolerances from
the others alone. Reruns have the same seeds in every case, so that the cases' reruns of one seed
are a whole check of the lane, which the reruns of all other seeds have judged.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from validation.compare import Comparison, Tolerances
from validation.running.notes import Grains

# A tolerance at a step is a multiple of the largest noise seen up to a few steps later.
LOOK_AHEAD = 2
FACTOR = 4.0

EPSILON = 2.0**-23
_SMALLEST_FLOOR = 8

# What reruns change. Seeds of the first two mean the same in every case of a lane.
ROUNDING, PERTURBED = "random rounding", "perturbed weights"
EQUIVALENT, ELSEWHERE = "equivalent settings", "runs made elsewhere"

Noise = Mapping[str, Mapping[int, float]]
"""Class -> step -> largest relative difference."""


def floor_of(terms: int) -> float:
    """The least tolerance of a run whose longest sum has so many terms.

    Eight fp32 epsilons for a chain of a few operations; a sum in pairs passes each number through
    log2 of its terms additions.
    """
    return EPSILON * max(_SMALLEST_FLOOR, math.log2(max(1, terms)))


def largest_so_far(steps: Mapping[int, float], step: int) -> float:
    """The largest noise of a class up to `LOOK_AHEAD` steps after this one."""
    return max((value for s, value in steps.items() if s <= step + LOOK_AHEAD), default=0.0)


def noise_of(comparison: Comparison) -> Noise:
    """Takes the largest error of a comparison by class and step.

    Args:
        comparison: of a rerun with the base.

    Returns:
        Class -> step -> the largest error.

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


def largest_of(runs: Sequence[Noise]) -> Noise:
    """The largest noise of any run, by class and step."""
    noise: dict[str, dict[int, float]] = defaultdict(dict)
    for run in runs:
        for name, steps in run.items():
            for step, value in steps.items():
                noise[name][step] = max(noise[name].get(step, 0.0), value)
    return noise


def tolerances_from(noise: Noise, floor: float, grains: Grains | None = None) -> Tolerances:
    """Computes tolerances that never shrink along a run, except with a grain.

    Args:
        noise: the largest of the reruns. A class in which nothing moved has the floor: other code
            may move it.
        floor: see `floor_of`.
        grains: of values made of rounded numbers.

    Returns:
        A tolerance for each class and step of the noise.
    """
    known = grains or {}
    return Tolerances(
        {
            name: {
                step: max(
                    floor + known.get(name, {}).get(step, 0.0),
                    FACTOR * largest_so_far(steps, step),
                )
                for step in sorted(steps)
            }
            for name, steps in noise.items()
        }
    )


def largest_ratio(noise: Noise, tolerances: Tolerances) -> float:
    """The largest error of a run over its tolerance; beyond 1 a check would have failed."""
    return max(
        (
            math.inf if not tolerances.of(name, step) else value / tolerances.of(name, step)
            for name, steps in noise.items()
            for step, value in steps.items()
            if value
        ),
        default=0.0,
    )


def held_out(runs: Sequence[Noise], floor: float, grains: Grains | None = None) -> list[float]:
    """Of each run: its largest error over tolerances that follow from the other runs alone."""
    found = []
    for index, run in enumerate(runs):
        others = [other for number, other in enumerate(runs) if number != index]
        known = largest_of(
            [*others, {name: dict.fromkeys(steps, 0.0) for name, steps in run.items()}]
        )
        found.append(largest_ratio(run, tolerances_from(known, floor, grains)))
    return found


def by_seeds(calibration: Mapping[str, Any]) -> bool:
    """Whether a golden was calibrated by seeds that mean the same in every case."""
    return calibration.get("source") in (ROUNDING, PERTURBED)


def whole_check_alarms(calibrations: Iterable[Mapping[str, Any]]) -> tuple[int, int, float]:
    """How many held-out whole checks of a lane would have failed without reason.

    Args:
        calibrations: the calibration record of each golden of the lane.

    Returns:
        Failed checks, checks, and the largest ratio of any of them. A check is the reruns of one
        seed in every case that was calibrated by seeds: none where no case was.
    """
    ratios = [[float(ratio) for ratio in r["held_out"]] for r in calibrations if by_seeds(r)]
    checks = list(zip(*ratios, strict=False))
    largest = max((max(check) for check in checks), default=0.0)
    return sum(max(check) > 1.0 for check in checks), len(checks), largest
