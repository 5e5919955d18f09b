"""From TPA's factors to attention's inputs in one Triton pass: compose, QK-norm, GRAPE-M rotation.

Unfused, every step reads and writes queries of [s, b, h, d], partly in fp32. Here a token's factors
are read once and its query, key and value written once; everything in between is fp32 in registers.
The backward pass recomputes it. Sums over tokens are made program by program and added up in a
fixed order.
"""

# Triton kernels take pointers and constexprs, which have no Python types.
# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

# Tokens of a program of the backward pass, whose sums over tokens are written once a program.
_TOKENS = 16


@dataclass(frozen=True)
class TensorProductShape:
    """Heads and ranks of this rank's factors.

    Attributes:
        heads: query heads.
        groups: key and value heads.
        q_rank: rank of the query factors.
        rank: rank of the key and value factors.
        channels: head dimension, a power of two.
        epsilon: of QK-norm.
    """

    heads: int
    groups: int
    q_rank: int
    rank: int
    channels: int
    epsilon: float

    @property
    def offsets(self) -> tuple[int, int, int, int, int, int]:
        """First columns of a_q, a_k, a_v, b_q, b_k and b_v among the factors."""
        a_k = self.heads * self.q_rank
        a_v = a_k + self.groups * self.rank
        b_q = a_v + self.groups * self.rank
        b_k = b_q + self.q_rank * self.channels
        return 0, a_k, a_v, b_q, b_k, b_k + self.rank * self.channels

    @property
    def width(self) -> int:
        """Columns of the factors."""
        return self.offsets[-1] + self.rank * self.channels


@triton.jit
def _compose(
    a_ptr, b_ptr, heads, planes, HEADS: tl.constexpr, RANK: tl.constexpr, HALF: tl.constexpr
):
    """Both halves [HEADS, HALF] of the mean over the ranks of a[h, r] b[r]."""
    rows = tl.arange(0, HEADS)
    first = tl.zeros([HEADS, HALF], tl.float32)
    second = tl.zeros([HEADS, HALF], tl.float32)
    for r in tl.static_range(RANK):
        a = tl.load(a_ptr + rows * RANK + r, mask=rows < heads, other=0.0).to(tl.float32)
        low = tl.load(b_ptr + r * 2 * HALF + planes).to(tl.float32)
        high = tl.load(b_ptr + r * 2 * HALF + HALF + planes).to(tl.float32)
        first += a[:, None] * low[None, :]
        second += a[:, None] * high[None, :]
    return first / RANK, second / RANK


@triton.jit
def _store_factor_gradients(
    a_ptr,
    b_ptr,
    da_ptr,
    db_ptr,
    first,
    second,
    heads,
    planes,
    HEADS: tl.constexpr,
    RANK: tl.constexpr,
    HALF: tl.constexpr,
):
    """Gradients of a and b from those of the composed halves."""
    rows = tl.arange(0, HEADS)
    for r in tl.static_range(RANK):
        a = tl.load(a_ptr + rows * RANK + r, mask=rows < heads, other=0.0).to(tl.float32) / RANK
        low = tl.load(b_ptr + r * 2 * HALF + planes).to(tl.float32)
        high = tl.load(b_ptr + r * 2 * HALF + HALF + planes).to(tl.float32)
        da = tl.sum(first * low[None, :] + second * high[None, :], axis=1) / RANK
        element = da_ptr.dtype.element_ty
        tl.store(da_ptr + rows * RANK + r, da.to(element), mask=rows < heads)
        d_low = tl.sum(first * a[:, None], axis=0)
        d_high = tl.sum(second * a[:, None], axis=0)
        tl.store(db_ptr + r * 2 * HALF + planes, d_low.to(element))
        tl.store(db_ptr + r * 2 * HALF + HALF + planes, d_high.to(element))


@triton.jit
def _store_rotated(
    a_ptr,
    b_ptr,
    weight_ptr,
    out_ptr,
    cos,
    sin,
    heads,
    epsilon,
    HEADS: tl.constexpr,
    RANK: tl.constexpr,
    HALF: tl.constexpr,
):
    """Composes, normalises, rotates and stores one token's heads."""
    planes = tl.arange(0, HALF)
    rows = tl.arange(0, HEADS)
    first, second = _compose(a_ptr, b_ptr, heads, planes, HEADS, RANK, HALF)
    squares = tl.sum(first * first + second * second, axis=1) / (2 * HALF)
    scale = (1.0 / tl.sqrt(squares + epsilon))[:, None]
    first = first * scale * tl.load(weight_ptr + planes).to(tl.float32)[None, :]
    second = second * scale * tl.load(weight_ptr + HALF + planes).to(tl.float32)[None, :]
    place = rows[:, None] * 2 * HALF + planes[None, :]
    inside = rows[:, None] < heads
    element = out_ptr.dtype.element_ty
    tl.store(out_ptr + place, (first * cos - second * sin).to(element), mask=inside)
    tl.store(out_ptr + place + HALF, (second * cos + first * sin).to(element), mask=inside)


@triton.jit
def _rotated_gradient(
    a_ptr,
    b_ptr,
    da_ptr,
    db_ptr,
    weight_ptr,
    grad_ptr,
    cos,
    sin,
    heads,
    epsilon,
    HEADS: tl.constexpr,
    RANK: tl.constexpr,
    HALF: tl.constexpr,
):
    """Stores the factors' gradients; returns those of cos, sin and both halves of the weight."""
    planes = tl.arange(0, HALF)
    rows = tl.arange(0, HEADS)
    place = rows[:, None] * 2 * HALF + planes[None, :]
    inside = rows[:, None] < heads
    grad_first = tl.load(grad_ptr + place, mask=inside, other=0.0).to(tl.float32)
    grad_second = tl.load(grad_ptr + place + HALF, mask=inside, other=0.0).to(tl.float32)
    first, second = _compose(a_ptr, b_ptr, heads, planes, HEADS, RANK, HALF)
    squares = tl.sum(first * first + second * second, axis=1) / (2 * HALF)
    scale = (1.0 / tl.sqrt(squares + epsilon))[:, None]
    first, second = first * scale, second * scale
    low = tl.load(weight_ptr + planes).to(tl.float32)[None, :]
    high = tl.load(weight_ptr + HALF + planes).to(tl.float32)[None, :]
    d_cos = tl.sum(grad_first * first * low + grad_second * second * high, axis=0)
    d_sin = tl.sum(grad_second * first * low - grad_first * second * high, axis=0)
    back_first = grad_first * cos + grad_second * sin
    back_second = grad_second * cos - grad_first * sin
    d_low = tl.sum(back_first * first, axis=0)
    d_high = tl.sum(back_second * second, axis=0)
    back_first, back_second = back_first * low, back_second * high
    mean = tl.sum(back_first * first + back_second * second, axis=1) / (2 * HALF)
    back_first = scale * (back_first - first * mean[:, None])
    back_second = scale * (back_second - second * mean[:, None])
    _store_factor_gradients(
        a_ptr, b_ptr, da_ptr, db_ptr, back_first, back_second, heads, planes, HEADS, RANK, HALF
    )
    return d_cos, d_sin, d_low, d_high


@triton.jit
def _forward_kernel(
    factors_ptr,
    cos_sin_ptr,
    q_weight_ptr,
    k_weight_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    tokens,
    epsilon,
    heads,
    groups,
    a_k,
    a_v,
    b_q,
    b_k,
    b_v,
    width,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    Q_RANK: tl.constexpr,
    RANK: tl.constexpr,
    HALF: tl.constexpr,
):
    """One token."""
    token = tl.program_id(0).to(tl.int64)
    planes = tl.arange(0, HALF)
    factors = factors_ptr + token * width
    cos = tl.load(cos_sin_ptr + token * HALF + planes)[None, :]
    sin = tl.load(cos_sin_ptr + (tokens + token) * HALF + planes)[None, :]
    _store_rotated(
        factors, factors + b_q, q_weight_ptr, q_ptr + token * heads * 2 * HALF,
        cos, sin, heads, epsilon, HEADS, Q_RANK, HALF,
    )  # fmt: skip
    _store_rotated(
        factors + a_k, factors + b_k, k_weight_ptr, k_ptr + token * groups * 2 * HALF,
        cos, sin, groups, epsilon, GROUPS, RANK, HALF,
    )  # fmt: skip
    first, second = _compose(factors + a_v, factors + b_v, groups, planes, GROUPS, RANK, HALF)
    rows = tl.arange(0, GROUPS)
    place = token * groups * 2 * HALF + rows[:, None] * 2 * HALF + planes[None, :]
    inside = rows[:, None] < groups
    tl.store(v_ptr + place, first.to(v_ptr.dtype.element_ty), mask=inside)
    tl.store(v_ptr + place + HALF, second.to(v_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    factors_ptr,
    cos_sin_ptr,
    q_weight_ptr,
    k_weight_ptr,
    dq_ptr,
    dk_ptr,
    dv_ptr,
    d_factors_ptr,
    d_cos_sin_ptr,
    d_weights_ptr,
    tokens,
    epsilon,
    heads,
    groups,
    a_k,
    a_v,
    b_q,
    b_k,
    b_v,
    width,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    Q_RANK: tl.constexpr,
    RANK: tl.constexpr,
    HALF: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """TOKENS tokens; d_weights [programs, 4, HALF] gets their parts of both norms' gradients."""
    planes = tl.arange(0, HALF)
    q_low = tl.zeros([HALF], tl.float32)
    q_high = tl.zeros([HALF], tl.float32)
    k_low = tl.zeros([HALF], tl.float32)
    k_high = tl.zeros([HALF], tl.float32)
    begin = tl.program_id(0).to(tl.int64) * TOKENS
    for index in range(0, tl.minimum(TOKENS, tokens - begin)):
        token = begin + index
        factors = factors_ptr + token * width
        d_factors = d_factors_ptr + token * width
        cos = tl.load(cos_sin_ptr + token * HALF + planes)[None, :]
        sin = tl.load(cos_sin_ptr + (tokens + token) * HALF + planes)[None, :]
        d_cos, d_sin, low, high = _rotated_gradient(
            factors, factors + b_q, d_factors, d_factors + b_q, q_weight_ptr,
            dq_ptr + token * heads * 2 * HALF, cos, sin, heads, epsilon, HEADS, Q_RANK, HALF,
        )  # fmt: skip
        q_low += low
        q_high += high
        more_cos, more_sin, low, high = _rotated_gradient(
            factors + a_k, factors + b_k, d_factors + a_k, d_factors + b_k, k_weight_ptr,
            dk_ptr + token * groups * 2 * HALF, cos, sin, groups, epsilon, GROUPS, RANK, HALF,
        )  # fmt: skip
        k_low += low
        k_high += high
        tl.store(d_cos_sin_ptr + token * HALF + planes, d_cos + more_cos)
        tl.store(d_cos_sin_ptr + (tokens + token) * HALF + planes, d_sin + more_sin)
        rows = tl.arange(0, GROUPS)
        place = token * groups * 2 * HALF + rows[:, None] * 2 * HALF + planes[None, :]
        inside = rows[:, None] < groups
        first = tl.load(dv_ptr + place, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(dv_ptr + place + HALF, mask=inside, other=0.0).to(tl.float32)
        _store_factor_gradients(
            factors + a_v, factors + b_v, d_factors + a_v, d_factors + b_v,
            first, second, groups, planes, GROUPS, RANK, HALF,
        )  # fmt: skip
    target = d_weights_ptr + tl.program_id(0) * 4 * HALF + planes
    tl.store(target, q_low)
    tl.store(target + HALF, q_high)
    tl.store(target + 2 * HALF, k_low)
    tl.store(target + 3 * HALF, k_high)


class _ComposeNormRotate(torch.autograd.Function):
    """Forward and backward of `compose_norm_rotate`."""

    @staticmethod
    def forward(
        ctx: Any,
        factors: torch.Tensor,
        q_weight: torch.Tensor,
        k_weight: torch.Tensor,
        cos_sin: torch.Tensor,
        shape: TensorProductShape,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        factors, cos_sin = factors.contiguous(), cos_sin.contiguous()
        leading = factors.shape[:-1]
        query, key, value = (
            factors.new_empty((*leading, heads, shape.channels))
            for heads in (shape.heads, shape.groups, shape.groups)
        )
        tokens = factors.numel() // shape.width
        _forward_kernel[(tokens,)](
            factors, cos_sin, q_weight, k_weight, query, key, value,
            **_arguments(tokens, shape), num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(factors, q_weight, k_weight, cos_sin)
        ctx.shape = shape
        return query, key, value

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        factors, q_weight, k_weight, cos_sin = ctx.saved_tensors
        shape: TensorProductShape = ctx.shape
        tokens = factors.numel() // shape.width
        programs = triton.cdiv(tokens, _TOKENS)
        d_factors, d_cos_sin = torch.empty_like(factors), torch.empty_like(cos_sin)
        d_weights = cos_sin.new_empty((programs, 2, shape.channels))
        _backward_kernel[(programs,)](
            factors, cos_sin, q_weight, k_weight, *(grad.contiguous() for grad in grads),
            d_factors, d_cos_sin, d_weights,
            **_arguments(tokens, shape), TOKENS=_TOKENS, num_warps=4,
        )  # fmt: skip
        d_q_weight, d_k_weight = d_weights.sum(0).to(q_weight.dtype)
        return d_factors, d_q_weight, d_k_weight, d_cos_sin, None


def compose_norm_rotate(
    factors: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cos_sin: torch.Tensor,
    shape: TensorProductShape,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention's inputs from TPA's factors.

    Args:
        factors: [s, b, width]: a_q, a_k, a_v, b_q, b_k and b_v side by side.
        q_weight: of the query's RMSNorm, [d].
        k_weight: of the key's, [d].
        cos_sin: GRAPE-M's cosines and sines, fp32 [2, s, b, 1, d/2].
        shape: what the factors are.

    Returns:
        query [s, b, h, d] and key [s, b, g, d], normalised and rotated, value [s, b, g, d].
    """
    query, key, value = _ComposeNormRotate.apply(factors, q_weight, k_weight, cos_sin, shape)
    return query, key, value


def _arguments(tokens: int, shape: TensorProductShape) -> dict[str, Any]:
    _, a_k, a_v, b_q, b_k, b_v = shape.offsets
    return {
        "tokens": tokens,
        "epsilon": shape.epsilon,
        "heads": shape.heads,
        "groups": shape.groups,
        "a_k": a_k,
        "a_v": a_v,
        "b_q": b_q,
        "b_k": b_k,
        "b_v": b_v,
        "width": shape.width,
        "HEADS": triton.next_power_of_2(shape.heads),
        "GROUPS": triton.next_power_of_2(shape.groups),
        "Q_RANK": shape.q_rank,
        "RANK": shape.rank,
        "HALF": shape.channels // 2,
    }
