"""Comparison of traces: comparators, tolerance classes, the first divergence."""

from validation.compare.compare import MISSING, Comparison, CurveComparison, Outcome, compare
from validation.compare.law import compare_law
from validation.compare.tolerance import EXACT, Tolerances, curve_class, event_class

__all__ = [
    "EXACT",
    "MISSING",
    "Comparison",
    "CurveComparison",
    "Outcome",
    "Tolerances",
    "compare",
    "compare_law",
    "curve_class",
    "event_class",
]
