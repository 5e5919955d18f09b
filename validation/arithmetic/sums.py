"""How many terms the longest sum inside of an operation has: what rounding errors grow with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

_NORMS = ("norm", "linalg_vector_norm", "_foreach_norm", "dist")


def longest_sum(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], results: Sequence[torch.Tensor]
) -> int:
    """Counts the terms of the longest sum of a reduction, softmax or accumulation.

    A root halves the relative error of a sum, so that a norm of K numbers counts as a sum of their
    square root.

    Args:
        func: the overload (`torch._ops.OpOverload`).
        args: that it was called with.
        kwargs: that it was called with.
        results: its tensors.

    Returns:
        The number of terms, at least 1.
    """
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    index = given.get("index", given.get("indices"))
    if isinstance(index, torch.Tensor):  # every number may go to one place
        return max(1, index.numel())
    first = next((a for a in given.values() if isinstance(a, torch.Tensor)), None)
    if first is None:
        return 1
    dim = given.get("dim")
    if isinstance(dim, int) and first.ndim:
        return max(1, int(first.shape[dim]))
    smallest = min((r.numel() for r in results if r.numel()), default=first.numel())
    terms = max(1, first.numel() // max(1, smallest))
    return math.isqrt(terms) if func._schema.name.split("::")[1] in _NORMS else terms
