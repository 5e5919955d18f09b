"""Bounds on rates that were counted: exact (Clopper-Pearson), one-sided.

Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the
binomial", Biometrika 26 (1934): the bound is a quantile of a beta distribution, and never covers
less than it says. Nothing seen in n trials bounds the rate by 1 - (1 - confidence)^(1/n).
"""

from __future__ import annotations


def upper_bound(alarms: int, runs: int, confidence: float = 0.95) -> float:
    """The largest rate that `alarms` of `runs` do not rule out.

    Args:
        alarms: how often it happened.
        runs: independent trials.
        confidence: of the one-sided bound.

    Raises:
        ValueError: no such count.
    """
    _check(alarms, runs, confidence)
    if alarms == runs:
        return 1.0
    from scipy.stats import beta

    return float(beta.ppf(confidence, alarms + 1, runs - alarms))


def lower_bound(hits: int, runs: int, confidence: float = 0.95) -> float:
    """The smallest rate that `hits` of `runs` do not rule out.

    Args:
        hits: how often it happened.
        runs: independent trials.
        confidence: of the one-sided bound.

    Raises:
        ValueError: no such count.
    """
    _check(hits, runs, confidence)
    if hits == 0:
        return 0.0
    from scipy.stats import beta

    return float(beta.ppf(1.0 - confidence, hits, runs - hits + 1))


def _check(count: int, runs: int, confidence: float) -> None:
    if not 0 <= count <= runs:
        raise ValueError(f"{count} of {runs}: a count is between 0 and the number of runs")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence {confidence}: between 0 and 1")
