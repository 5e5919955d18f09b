"""Bounds on rates that were counted: exact (Clopper-Pearson) and one-sided.

Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the
binomial", Biometrika 26 (1934): the bound covers the rate at least as often as it says.
"""

from __future__ import annotations

CONFIDENCE = 0.95


def upper_bound(count: int, runs: int, confidence: float = CONFIDENCE) -> float:
    """Computes the largest rate that `count` of `runs` does not rule out.

    Args:
        count: how often it happened.
        runs: independent trials.
        confidence: of the one-sided bound.

    Returns:
        The bound; 1 without runs.

    Raises:
        ValueError: no such count, or no such confidence.
    """
    return _bound(count, runs, confidence, "less")


def lower_bound(count: int, runs: int, confidence: float = CONFIDENCE) -> float:
    """Computes the smallest rate that `count` of `runs` does not rule out.

    Args:
        count: how often it happened.
        runs: independent trials.
        confidence: of the one-sided bound.

    Returns:
        The bound; 0 without runs.

    Raises:
        ValueError: no such count, or no such confidence.
    """
    return _bound(count, runs, confidence, "greater")


def _bound(count: int, runs: int, confidence: float, alternative: str) -> float:
    if not 0 <= count <= runs:
        raise ValueError(f"{count} of {runs}: a count is between 0 and the number of runs")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence {confidence}: between 0 and 1")
    if runs == 0:
        return 1.0 if alternative == "less" else 0.0
    from scipy.stats import binomtest  # takes half a second to import

    found = binomtest(count, runs, alternative=alternative).proportion_ci(confidence, "exact")
    return float(found.high if alternative == "less" else found.low)
