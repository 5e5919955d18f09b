"""How far a fresh run's noise goes beyond that of the calibration's reruns.

Each rerun is held against the others: its largest error in a class, relative to the largest that
the others had up to there. Pooled over classes and reruns, the upper tenth of these ratios'
logarithms is taken for exponential, which gives the chance that a fresh run exceeds a multiple of
the largest noise seen in one class, and times the number of classes (Bonferroni, so whatever the
classes share) in any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A tolerance at a step is a multiple of the largest noise seen up to a few steps later.
LOOK_AHEAD = 2

# Never less than this, never more: beyond it a case needs more reruns, not wider tolerances.
SMALLEST_SAFETY, LARGEST_SAFETY = 4.0, 16.0
BOUND = 0.01
_TAIL = 0.1
_CONFIDENCE = 0.95

Noise = Mapping[str, Mapping[int, float]]
"""Class -> step -> largest relative difference."""


@dataclass(frozen=True)
class Spread:
    """What the ratios of reruns say.

    Attributes:
        usual: ratio that nine tenths of a fresh run's classes stay below; at least 1.
        classes: classes that have any noise.
        safety: factor on the largest noise seen that makes a tolerance.
        bound: of the chance that a fresh run is beyond any tolerance; 1 where too few reruns say
            nothing.
    """

    usual: float
    classes: int
    safety: float
    bound: float


def largest_so_far(steps: Mapping[int, float], step: int) -> float:
    """The largest noise of a class up to `LOOK_AHEAD` steps after this one."""
    return max((value for s, value in steps.items() if s <= step + LOOK_AHEAD), default=0.0)


def ratios(runs: Sequence[Noise], floor: float) -> list[float]:
    """Of each rerun and noisy class: its noise relative to the others' largest, at its worst step.

    Args:
        runs: noise of each rerun.
        floor: errors that no tolerance is below; smaller noise is taken for that much.
    """
    found = []
    names = {name for run in runs for name, steps in run.items() if any(steps.values())}
    for index, run in enumerate(runs):
        others = [other for number, other in enumerate(runs) if number != index]
        for name in sorted(names):
            worst = 0.0
            for step, value in run.get(name, {}).items():
                seen = max((largest_so_far(o.get(name, {}), step) for o in others), default=0.0)
                worst = max(worst, value / max(seen, floor / SMALLEST_SAFETY))
            found.append(worst)
    return found


def spread_of(runs: Sequence[Noise], floor: float) -> Spread:
    """Fits the ratios' tail and chooses the safety factor.

    Args:
        runs: noise of each rerun.
        floor: see `ratios`.
    """
    classes = len({name for run in runs for name, steps in run.items() if any(steps.values())})
    found = sorted(ratios(runs, floor))
    if classes == 0:
        return Spread(1.0, 0, SMALLEST_SAFETY, 0.0)
    if len(runs) < 3:
        return Spread(SMALLEST_SAFETY, classes, SMALLEST_SAFETY, 1.0)
    cut = max(1e-12, found[min(len(found) - 1, int((1.0 - _TAIL) * len(found)))])
    beyond = [math.log(ratio / cut) for ratio in found if ratio > cut]
    scale = _upper_mean(beyond)

    def chance(factor: float) -> float:
        if scale == 0.0 or factor <= cut:
            return 1.0 if factor <= cut else 0.0
        return min(1.0, classes * _TAIL * math.exp(-math.log(factor / cut) / scale))

    wanted = cut * math.exp(scale * max(0.0, math.log(classes * _TAIL / BOUND)))
    safety = min(LARGEST_SAFETY, max(SMALLEST_SAFETY, wanted))
    return Spread(max(1.0, cut), classes, safety, chance(safety))


def _upper_mean(values: Sequence[float]) -> float:
    """Upper confidence limit of the mean of an exponential sample; 0 of none."""
    if not values:
        return 0.0
    from scipy.stats import chi2

    count = len(values)
    return float(2.0 * sum(values) / chi2.ppf(1.0 - _CONFIDENCE, 2 * count))
