"""What it means that the gate caught a bug: one definition for check, faults and rebase."""

from __future__ import annotations

import math
from dataclasses import dataclass

from validation.compare import MISSING, Comparison
from validation.verdict import Divergence


@dataclass(frozen=True)
class Catch:
    """That a comparison shows a planted bug, and how plainly.

    Attributes:
        first: the deciding divergence, the first in execution order.
        margin: error over tolerance of the worst floating record; inf where a discrete record, a
            law or a table differs.
    """

    first: Divergence
    margin: float

    @property
    def place(self) -> str:
        """Where the gate says that the bug is."""
        return ".".join(part for part in (self.first.module, self.first.tensor) if part)


def catch_of(comparison: Comparison) -> Catch | None:
    """What a comparison with a bug planted shows of it; None if nothing.

    A record that only one side has proves nothing: a bug that ends a run early, or that keeps a
    hook from its tensor, would be caught by any comparison, however blind to values.
    """
    differing = [d for d in comparison.divergences if not _one_sided(d)]
    if not differing:
        return None
    worst = comparison.largest
    fact = worst is None or any(d.relative_error is None for d in differing)
    return Catch(differing[0], math.inf if fact or worst is None else worst.ratio)


def _one_sided(divergence: Divergence) -> bool:
    """Whether only one trace has the record; with an offset, both have it and one is shorter."""
    sides = divergence.expected, divergence.actual
    return divergence.offset is None and MISSING in sides
