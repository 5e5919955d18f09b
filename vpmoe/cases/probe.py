"""Reads tables off a built model: which keys each attention layer really uses.

Nothing is read from the configuration. Query i depends on key j exactly if the gradient of output i
with respect to value j is not zero, whatever mask, window or kernel is in between.
"""

from __future__ import annotations

from typing import Any

import torch


def allowed_intervals(
    core_attention: Any, length: int, heads: int, groups: int, head_dim: int
) -> list[list[int]]:
    """The keys that each query of one core attention attends to.

    The sequence is put once for each query along the batch; sample i backpropagates output i alone.

    Args:
        core_attention: the module; takes q [s, b, heads, d], k and v [s, b, groups, d] and
            document ids [b, s].
        length: sequence length T.
        heads: query heads of this rank.
        groups: KV groups of this rank.
        head_dim: d.

    Returns:
        For each query the half-open intervals of keys with a gradient in k and v and an effect on
        the output, flattened: [start, end, start, end, ...].

    Raises:
        RuntimeError: a key moves an output that its value does not reach.
    """
    generator = torch.Generator().manual_seed(7)
    own = next(core_attention.parameters(), torch.empty(0))
    device = own.device

    def draw(count: int) -> torch.Tensor:
        values = torch.randn(length, 1, count, head_dim, generator=generator).to(own)
        spread = values.expand(length, length, count, head_dim)
        # A kernel takes no repeated strides, and a GPU repeats faster than it is sent.
        return spread.contiguous() if spread.is_cuda else spread

    query, key, value = draw(heads), draw(groups), draw(groups)
    key, value = key.clone().requires_grad_(), value.clone().requires_grad_()
    with torch.enable_grad():
        output = core_attention(query, key, value, None)
        every = torch.arange(length, device=device)
        output[every, every].sum().backward()
    assert key.grad is not None
    assert value.grad is not None
    # Position 0 attends to itself alone: its softmax is constant and k has no gradient there.
    used = value.grad.abs().sum(dim=(2, 3)).t() > 0  # [query, key]
    steered = key.grad.abs().sum(dim=(2, 3)).t() > 0
    if bool((steered & ~used).any()):
        raise RuntimeError("a key steers an output that its value does not reach")
    return [_intervals(row) for row in used.tolist()]


def _intervals(row: list[bool]) -> list[int]:
    edges: list[int] = []
    for index, (before, now) in enumerate(zip([False, *row], [*row, False], strict=True)):
        if before != now:
            edges.append(index)
    return edges
