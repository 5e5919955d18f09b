"""Comparison of traces: comparators, tolerance classes, the first divergence."""

from validation.compare.compare import MISSING, Catch, Comparison, CurveComparison, Outcome, compare
from validation.compare.divergence import Divergence
from validation.compare.invariant import compare_invariant
from validation.compare.tolerance import EXACT, Tolerances

__all__ = [
    "EXACT",
    "MISSING",
    "Catch",
    "Comparison",
    "CurveComparison",
    "Divergence",
    "Outcome",
    "Tolerances",
    "compare",
    "compare_invariant",
]
