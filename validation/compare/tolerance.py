"""Tolerances: what a floating record may differ by, per class of records and step.

A class (`validation.trace.classes`) that was never calibrated has tolerance 0.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Tolerances:
    """Relative tolerances by class and step; between calibrated steps the later one's holds.

    Attributes:
        classes: class -> step -> relative tolerance.
    """

    classes: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def of(self, name: str, step: int) -> float:
        """The tolerance of a class at a step; after the last calibrated step, that one's."""
        steps = self.classes.get(name)
        if not steps:
            return 0.0
        known = sorted(steps)
        return steps[known[min(bisect.bisect_left(known, step), len(known) - 1)]]

    def times(self, factor: float) -> Tolerances:
        """Tolerances that allow `factor` times as much."""
        return Tolerances(
            {
                name: {step: factor * allowed for step, allowed in steps.items()}
                for name, steps in self.classes.items()
            }
        )


EXACT = Tolerances()
