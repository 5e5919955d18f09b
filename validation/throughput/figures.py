"""Figures of a side's blocks: step time, tokens a second, MFU, memory, optimizer share."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from validation.throughput.session import SIDES, Block

PEAK_FLOPS: Mapping[str, float] = {
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA A100-SXM4-80GB": 312.0e12,
}
"""Dense bf16 FLOP/s of a card, as its maker states them, by the name that CUDA gives it."""


@dataclass(frozen=True)
class Figures:
    """One side.

    Attributes:
        step_seconds: median over blocks of a step's wall-clock time.
        tokens_per_second: tokens of a step over the median step time.
        mfu: share of the card's peak that the model's FLOPs come to; None where either is unknown.
        peak_bytes: median over blocks of the peak of memory.
        optimizer_share: of the step time, median over blocks.
        relative_cost: median over blocks of step time over the reference kernel's time.
    """

    step_seconds: float
    tokens_per_second: float
    mfu: float | None
    peak_bytes: int
    optimizer_share: float
    relative_cost: float

    def to_json(self) -> dict[str, Any]:
        """Every attribute."""
        return asdict(self)


def figures_of(blocks: Sequence[Block], facts: Mapping[str, Any]) -> Figures:
    """Sums up the blocks of one side.

    Args:
        blocks: at least one.
        facts: what the side's pacer described.

    Returns:
        The figures.
    """
    seconds = statistics.median(block.step_seconds for block in blocks)
    tokens = sum(b.tokens for b in blocks) / sum(b.steps for b in blocks)
    peak = PEAK_FLOPS.get(facts["environment"]["device"])
    flops = facts.get("flops_per_token")
    return Figures(
        step_seconds=seconds,
        tokens_per_second=tokens / seconds,
        mfu=None if peak is None or flops is None else flops * tokens / seconds / peak,
        peak_bytes=round(statistics.median(block.peak_bytes for block in blocks)),
        optimizer_share=statistics.median(b.optimizer_seconds / b.seconds for b in blocks),
        relative_cost=statistics.median(b.step_seconds / b.reference_seconds for b in blocks),
    )


@dataclass(frozen=True)
class OperatorChange:
    """What a step spends in one kernel, or operator on a CPU; seconds a step, None where absent."""

    name: str
    base: float | None
    head: float | None

    @property
    def difference(self) -> float:
        """Seconds a step that the head spends more."""
        return (self.head or 0.0) - (self.base or 0.0)

    def to_json(self) -> dict[str, Any]:
        """Every attribute, and the difference."""
        return {**asdict(self), "difference": self.difference}


def operator_changes(blocks: Sequence[Block]) -> list[OperatorChange]:
    """Compares all kernels or operators of profiled blocks.

    Args:
        blocks: of both sides, several of each: a single step's operators vary more than they
            differ. Medians over the blocks of a side are compared.

    Returns:
        The changes, what got slower most first.
    """
    names = dict.fromkeys(name for block in blocks for name in block.operators or {})
    changes = [OperatorChange(n, *(_typical(blocks, side, n) for side in SIDES)) for n in names]
    return sorted(changes, key=lambda change: -change.difference)


def _typical(blocks: Sequence[Block], side: str, name: str) -> float | None:
    """Median of an operator's seconds a step; None where no block has it."""
    found = [(b.operators or {}, b.steps) for b in blocks if b.side == side]
    if not any(name in operators for operators, _ in found):
        return None
    return statistics.median(operators.get(name, 0.0) / steps for operators, steps in found)
