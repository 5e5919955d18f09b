"""What an arithmetic counts while a run computes in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Arithmetic:
    """Counts of one process.

    Attributes:
        largest_sum: terms of the longest sum met: K of a product of matrices, the numbers that a
            reduction adds up.
        shaken: operations whose results were moved by random rounding.
    """

    largest_sum: int = 0
    shaken: int = 0
