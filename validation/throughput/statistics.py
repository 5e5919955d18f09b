"""Is the head slower than the base? Pure functions over paired measurements.

A *quad* is four neighbouring blocks, A B B A or B A A B: its effect, mean log B - mean log A, is
free of any linear drift of the machine. Were both sides the same, each effect would be as likely
negative as positive, whatever its size: that is all the test assumes. Its statistic is the sum of
the ranks of the positive effects, which a few disturbed quads cannot move much, and its
distribution under all 2^n changes of sign is computed exactly.

Two processes of the same code can differ for as long as they live, by where their memory lies or
which cores they run on, and no number of quads averages that away. So a run starts both sides more
than once, and a slowdown must show in every start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALPHA = 0.005
"""Chance of an alarm where nothing changed: a third of one in sixty, the most that is allowed."""
MIN_EFFECT = 0.003
"""Slowdowns up to this are not worth an alarm, however sure."""
CONFIDENCE = 0.95
POWER = 0.9

_RESAMPLES = 400


@dataclass(frozen=True)
class Judgement:
    """What a series of quads says; ratios are head over base, 1.03 being 3 % slower.

    Attributes:
        quads: how many there are.
        p: chance of so large a slowdown if the sides were the same.
        ratio: Hodges-Lehmann estimate.
        low: lower bound of the confidence interval of the ratio; 0 where there are too few quads.
        high: upper bound; infinite where there are too few quads.
        detectable: smallest ratio that a run of this length and spread finds with 90 % power;
            None where even a large one would not be found.
        slower: whether p < alpha and the ratio exceeds 1 + the least effect, as does every
            start's.
        starts: the ratio of each start of the processes.
    """

    quads: int
    p: float
    ratio: float
    low: float
    high: float
    detectable: float | None
    slower: bool
    starts: Sequence[float]


def judge(
    starts: Sequence[Sequence[float]], *, alpha: float = ALPHA, min_effect: float = MIN_EFFECT
) -> Judgement:
    """Judges the effects of a run's quads.

    Args:
        starts: log ratios, head over base, of each start of the processes; at least one each.
        alpha: level of the one-sided test.
        min_effect: relative slowdown that an alarm must exceed.

    Returns:
        The effect with its confidence interval, and whether the head is slower.

    Raises:
        ValueError: no effect, or one that is not finite.
    """
    values = np.asarray([effect for start in starts for effect in start], dtype=np.float64)
    if not all(starts) or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"expected finite log ratios, at least one a start, found {[list(s) for s in starts]}"
        )
    p, centre = signed_rank_p(values), hodges_lehmann(values)
    low, high = confidence_interval(values)
    least = math.log1p(min_effect)
    smallest = detectable_effect(values, alpha=alpha, min_effect=least)
    centres = [hodges_lehmann(np.asarray(start, dtype=np.float64)) for start in starts]
    return Judgement(
        quads=values.size,
        p=p,
        ratio=math.exp(centre),
        low=math.exp(low),
        high=math.exp(high),
        detectable=None if smallest is None else math.exp(smallest),
        slower=p < alpha and min(centre, *centres) > least,
        starts=[math.exp(each) for each in centres],
    )


def signed_rank_p(values: np.ndarray) -> float:
    """One-sided p of the sum of the positive values' ranks, over all changes of sign; exact.

    Ties share a mean rank, zeros count for neither side.
    """
    values = values[values != 0.0]
    if not values.size:
        return 1.0
    # Doubled, so that mean ranks are whole numbers.
    _, place, sizes = np.unique(np.abs(values), return_inverse=True, return_counts=True)
    ranks = (2 * sizes.cumsum() - sizes + 1)[place]
    chances = _null_distribution(ranks)
    return float(min(1.0, chances[int(ranks[values > 0].sum()) :].sum()))


def _null_distribution(ranks: np.ndarray) -> np.ndarray:
    """Chance of each sum of a random half of the ranks."""
    chances = np.zeros(int(ranks.sum()) + 1)
    chances[0] = 1.0
    for rank in ranks:
        moved = np.zeros_like(chances)
        moved[rank:] = chances[:-rank]
        chances = 0.5 * (chances + moved)
    return chances


def hodges_lehmann(values: np.ndarray) -> float:
    """The median of the means of all pairs, each value with itself included."""
    return float(np.median(_walsh_averages(values)))


def confidence_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Effects that the two-sided test does not reject; infinite where there are too few values."""
    below = np.cumsum(_null_distribution(np.arange(1, values.size + 1)))
    cut = int(np.searchsorted(below, (1.0 - confidence) / 2.0, side="right"))
    if cut == 0:
        return -math.inf, math.inf
    averages = np.sort(_walsh_averages(values))
    return float(averages[cut - 1]), float(averages[-cut])


def _walsh_averages(values: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(values.size)
    return (values[first] + values[second]) / 2.0


def detectable_effect(
    values: np.ndarray,
    *,
    alpha: float = ALPHA,
    min_effect: float = 0.0,
    power: float = POWER,
) -> float | None:
    """Smallest effect that so many values of the same spread would show with this power.

    The spread is resampled: values around their centre, with random signs and replacement.

    Args:
        values: log ratios.
        alpha: level of the one-sided test.
        min_effect: log ratio that the estimate must exceed too.
        power: share of the runs that must raise the alarm.

    Returns:
        A log ratio, or None when so few values can prove nothing.
    """
    count = values.size
    above = np.cumsum(_null_distribution(np.arange(1, count + 1))[::-1])[::-1]
    critical = int(np.searchsorted(-above, -alpha, side="right"))
    if critical > count * (count + 1) // 2:
        return None
    generator = np.random.default_rng(0)
    shape = (_RESAMPLES, count)
    noise = generator.choice(values - hodges_lehmann(values), shape)
    noise *= generator.choice([-1.0, 1.0], shape)

    def found(effect: float) -> bool:
        proved = _rank_sums(noise + effect) >= critical
        # The estimate exceeds the least effect just when most ranks around it are positive.
        large = _rank_sums(noise + effect - min_effect) > count * (count + 1) / 4.0
        return float(np.mean(proved & large)) >= power

    low, high = 0.0, min_effect + 2.0 * float(np.abs(noise).max()) + 1e-9
    for _ in range(24):
        middle = (low + high) / 2.0
        low, high = (low, middle) if found(middle) else (middle, high)
    return high


def _rank_sums(rows: np.ndarray) -> np.ndarray:
    """Sum of the ranks of the positive values of each row, ties in any order."""
    ranks = np.abs(rows).argsort(axis=1).argsort(axis=1) + 1
    return np.where(rows > 0.0, ranks, 0).sum(axis=1)
