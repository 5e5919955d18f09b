"""Which matrices NorMuon works on together, and what its schedule moves of their step.

Units are matrices of one parameter; a chunk has units whose matrices are of one shape and layout.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import distributed

if TYPE_CHECKING:
    from vpmoe.optimizer.triton_kernel import SmallMatrices


@dataclass(frozen=True)
class MatrixLayout:
    """What the matrices in a parameter are.

    Attributes:
        partition_dim: the matrix dimension, 0 (rows) or 1 (columns), that `tp_group` shards.
        tp_group: the ranks that share the matrix; None when it is whole.
        block_rows: a fused weight's rows of each block in one group of blocks, such as Megatron's
            (query, key, value) rows of a query group. Each block, over all groups, is a matrix.
    """

    partition_dim: int | None = None
    tp_group: distributed.ProcessGroup | None = None
    block_rows: tuple[int, ...] | None = None

    @property
    def shards(self) -> int:
        """Ranks that share the matrix."""
        return 1 if self.tp_group is None else distributed.get_world_size(self.tp_group)


@dataclass(frozen=True)
class Unit:
    """Matrices of one parameter that are worked on together: whole rows or a block's rows."""

    param: torch.Tensor
    rows: tuple[int, int]
    block: tuple[int, int, int] | None = None  # rows of a group of blocks, first row, end row

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """The unit's rows of a tensor [..., n]: [rows, n], or [groups, rows, n] for a block."""
        if self.block is not None:
            total, start, stop = self.block
            return tensor.view(-1, total, tensor.shape[-1])[:, start:stop]
        first, end = self.rows
        if tensor.ndim == 2 and (first, end) == (0, tensor.shape[0]):
            return tensor
        return tensor.view(-1, tensor.shape[-1])[first:end]


@dataclass(frozen=True)
class Rates[T: (float, torch.Tensor)]:
    """What a schedule moves, for the matrices of one shape: W <- keep W + step N.

    Both are numbers, or fp32 scalars on the device where a CUDA graph must see them change.

    Attributes:
        keep: 1 - lr wd.
        step: -lr sqrt(max(1, m / n)).
    """

    keep: T
    step: T


def rates_of(lr: float, weight_decay: float, shape: tuple[int, int]) -> Rates[float]:
    """The rates of whole matrices [m, n]."""
    m, n = shape
    return Rates(1.0 - lr * weight_decay, -lr * math.sqrt(max(1.0, m / n)))


@dataclass(frozen=True)
class Chunk:
    """Units whose matrices have one shape and layout, stacked in one pass."""

    shape: tuple[int, int]
    layout: MatrixLayout
    units: tuple[Unit, ...]
    kernel: SmallMatrices | None = None

    @property
    def full_shape(self) -> tuple[int, int]:
        """The shape over all shards."""
        m, n = self.shape
        shards = self.layout.shards
        return (
            m * shards if self.layout.partition_dim == 0 else m,
            n * shards if self.layout.partition_dim == 1 else n,
        )


def units_of(param: torch.Tensor, layout: MatrixLayout, budget: int) -> Iterator[tuple[int, Unit]]:
    """The matrices of a parameter, and their rows; large stacks in parts of at most `budget`."""
    m, n = param.shape[-2:]
    if layout.block_rows is not None:
        total = sum(layout.block_rows)
        ends = list(itertools.accumulate(layout.block_rows))
        for start, stop in zip([0, *ends], ends, strict=False):
            rows = param.shape[0] // total * (stop - start)
            yield rows, Unit(param, (0, rows), (total, start, stop))
        return
    all_rows = param.numel() // n
    part = max(1, budget // (m * n)) * m
    for first in range(0, all_rows, part):
        yield m, Unit(param, (first, min(first + part, all_rows)))


def batches(units: Iterable[Unit], budget: int, n: int) -> Iterator[tuple[Unit, ...]]:
    """Consecutive units of at most `budget` elements together, or of one unit."""
    batch: list[Unit] = []
    size = 0
    for unit in units:
        elements = (unit.rows[1] - unit.rows[0]) * n
        if batch and size + elements > budget:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(unit)
        size += elements
    yield tuple(batch)


def stacked(views: Sequence[torch.Tensor], m: int, n: int) -> torch.Tensor:
    """A new tensor [b, m, n] of the units' matrices."""
    return torch.cat([view.reshape(-1, n) for view in views]).view(-1, m, n)


def parts(views: Sequence[torch.Tensor], whole: torch.Tensor) -> list[torch.Tensor]:
    """The inverse of `stacked`: the parts of `whole`, each in the shape of its view."""
    sizes = [view.numel() // view.shape[-1] for view in views]
    rows = whole.view(-1, whole.shape[-1]).split(sizes)
    return [part.view(view.shape) for part, view in zip(rows, views, strict=True)]


def unstack(views: Sequence[torch.Tensor], whole: torch.Tensor) -> None:
    """Copies the parts of `whole` into the views."""
    torch._foreach_copy_(list(views), parts(views, whole))
