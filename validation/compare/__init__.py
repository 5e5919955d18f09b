"""Comparison of traces: comparators, tolerance classes, the first divergence."""

from validation.compare.compare import MISSING, Comparison, CurveComparison, Outcome, compare
from validation.compare.tolerance import EXACT, Tolerances, curve_class, event_class

__all__ = [
    "EXACT",
    "MISSING",
    "Comparison",
    "CurveComparison",
    "Outcome",
    "Tolerances",
    "compare",
    "curve_class",
    "event_class",
]
