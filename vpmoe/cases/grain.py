"""The grain of an update: how far it may move because weights are stored rounded.

A weight is stored to its unit in the last place. Two correct optimizers whose updates differ
insignificantly may round a weight to either neighbour. That moves an update which is small beside
its weight: by half a per cent where the weight is a frequency of 129.
"""

from __future__ import annotations

import torch

from vpmoe.cases.statics import norm_of


def update_grain(weight: torch.Tensor, update: torch.Tensor) -> float | None:
    """Norm of a unit in the last place of each weight, relative to the norm of the update.

    Args:
        weight: after the update.
        update: of the same shape.

    Returns:
        None of an update of nothing, and where weights are narrower than fp32: these are copies of
        wider ones, which decide how they are rounded.
    """
    size = norm_of(update)
    if size == 0.0 or weight.dtype is not torch.float32:
        return None
    return norm_of(_units(weight)) / size


def moved_square(weight: torch.Tensor, update: torch.Tensor) -> float:
    """How far such roundings, each one way or the other, move the sum of an update's squares by.

    Half of its derivative: relative to the sum, it is how far they move the sum's root. Many
    weights' roundings cancel in it, a few ones' do not.
    """
    if weight.dtype is not torch.float32:
        return 0.0
    return norm_of(_units(weight).mul_(update))


def _units(weight: torch.Tensor) -> torch.Tensor:
    """A unit in the last place of each weight, fp32."""
    size = weight.detach().abs()
    return torch.nextafter(size, torch.full_like(size, torch.inf)).sub_(size)
