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

# One warp holds all channels of its tokens, one head at a time: sums over heads stay in registers,
# those over channels in the warp.
_FORWARD = {"TOKENS": 2, "num_warps": 1}
# Sums over tokens are written once for all tiles of a program. 128 registers: 16 warps at once.
_BACKWARD = {"TOKENS": 1, "TILES": 8, "num_warps": 1, "maxnreg": 128}


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
def _load_halves(ptr, inside, COUNT: tl.constexpr, HALF: tl.constexpr):
    """Both halves of COUNT vectors of each token, as they are stored: 2 COUNT tiles [TOKENS, HALF].

    ptr [TOKENS, HALF] points to the first vector's first half. A pointer to numbers of each token,
    such as a's, is [TOKENS, 1].
    """
    halves = ()
    for i in tl.static_range(2 * COUNT):
        halves += (tl.load(ptr + i * HALF, mask=inside, other=0.0),)  # type: ignore[assignment]
    return halves


@triton.jit
def _store_halves(ptr, halves, inside, COUNT: tl.constexpr, HALF: tl.constexpr):
    """The inverse of `_load_halves`."""
    for i in tl.static_range(2 * COUNT):
        tl.store(ptr + i * HALF, halves[i].to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _load_factors(a_ptr, inside, RANK: tl.constexpr):
    """One head's a / RANK: RANK tiles [TOKENS, 1]."""
    a = ()
    for r in tl.static_range(RANK):
        a += (tl.load(a_ptr + r, mask=inside, other=0.0).to(tl.float32) / RANK,)  # type: ignore[assignment]
    return a


@triton.jit
def _compose(a, b, RANK: tl.constexpr):
    """Both halves of one head, the mean over the ranks of a[r] b[r]."""
    first = 0.0
    second = 0.0
    for r in tl.static_range(RANK):
        first += a[r] * b[2 * r].to(tl.float32)
        second += a[r] * b[2 * r + 1].to(tl.float32)
    return first, second


@triton.jit
def _scale(first, second, epsilon, HALF: tl.constexpr):
    """What divides one head by its root mean square, [TOKENS, 1]."""
    squares = tl.sum(first * first + second * second, axis=1, keep_dims=True) / (2 * HALF)
    return tl.rsqrt(squares + epsilon)


@triton.jit
def _factor_gradients(da_ptr, a, b, d_b, first, second, inside, RANK: tl.constexpr):
    """Stores the gradient of one head's a; returns d_b with the head's part added to it.

    first and second are the gradient of the composed halves.
    """
    sums = ()
    for r in tl.static_range(RANK):
        products = first * b[2 * r].to(tl.float32) + second * b[2 * r + 1].to(tl.float32)
        da = tl.sum(products, axis=1, keep_dims=True) / RANK
        tl.store(da_ptr + r, da.to(da_ptr.dtype.element_ty), mask=inside)
        sums += (d_b[2 * r] + first * a[r], d_b[2 * r + 1] + second * a[r])  # type: ignore[assignment]
    return sums


@triton.jit
def _zeros(COUNT: tl.constexpr, TOKENS: tl.constexpr, HALF: tl.constexpr):
    """2 COUNT tiles of zeros."""
    halves = ()
    for _ in tl.static_range(2 * COUNT):
        halves += (tl.zeros([TOKENS, HALF], tl.float32),)  # type: ignore[assignment]
    return halves


@triton.jit
def _store_rotated(
    a_ptr,
    b_ptr,
    weight_ptr,
    out_ptr,
    cos,
    sin,
    inside,
    epsilon,
    HEADS: tl.constexpr,
    RANK: tl.constexpr,
    HALF: tl.constexpr,
):
    """Composes, normalises, rotates and stores the heads of some tokens."""
    b = _load_halves(b_ptr, inside, RANK, HALF)
    low = tl.load(weight_ptr).to(tl.float32)
    high = tl.load(weight_ptr + HALF).to(tl.float32)
    for h in range(HEADS):
        first, second = _compose(_load_factors(a_ptr + h * RANK, inside, RANK), b, RANK)
        scale = _scale(first, second, epsilon, HALF)
        first, second = first * scale * low, second * scale * high
        rotated = (first * cos - second * sin, second * cos + first * sin)
        _store_halves(out_ptr + h * 2 * HALF, rotated, inside, 1, HALF)


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
    d_cos,
    d_sin,
    d_low,
    d_high,
    inside,
    epsilon,
    HEADS: tl.constexpr,
    RANK: tl.constexpr,
    TOKENS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Stores the factors' gradients; adds to those of cos, sin and the halves of the weight.

    With x a head before its norm, s its scale, w the weight and g = s times the gradient of the
    rotated head, the gradient of x is y - x s^2 mean(x y), where y is w times g rotated back. The
    other gradients need nothing of a head but the products of g's halves with x's.
    """
    following = _load_halves(grad_ptr, inside, 1, HALF)
    b = _load_halves(b_ptr, inside, RANK, HALF)
    low = tl.load(weight_ptr).to(tl.float32)
    high = tl.load(weight_ptr + HALF).to(tl.float32)
    cos_low, sin_low, cos_high, sin_high = cos * low, sin * low, cos * high, sin * high
    d_b = _zeros(RANK, TOKENS, HALF)
    same_first, same_second = _zeros(1, TOKENS, HALF)
    cross_first, cross_second = _zeros(1, TOKENS, HALF)
    for h in range(HEADS):
        grads = following
        # Asked for before this head's stores, which no later load overtakes.
        grad_ptr += 2 * HALF
        following = _load_halves(grad_ptr, inside & (h + 1 < HEADS), 1, HALF)
        a = _load_factors(a_ptr + h * RANK, inside, RANK)
        first, second = _compose(a, b, RANK)
        scale = _scale(first, second, epsilon, HALF)
        grad_first = grads[0].to(tl.float32) * scale
        grad_second = grads[1].to(tl.float32) * scale
        same_first += grad_first * first
        same_second += grad_second * second
        cross_first += grad_second * first
        cross_second += grad_first * second
        back_first = grad_first * cos_low + grad_second * sin_low
        back_second = grad_second * cos_high - grad_first * sin_high
        products = back_first * first + back_second * second
        mean = tl.sum(products, axis=1, keep_dims=True) / (2 * HALF)
        back_first -= first * (scale * scale * mean)
        back_second -= second * (scale * scale * mean)
        d_b = _factor_gradients(da_ptr + h * RANK, a, b, d_b, back_first, back_second, inside, RANK)
    _store_halves(db_ptr, d_b, inside, RANK, HALF)
    d_cos += low * same_first + high * same_second
    d_sin += low * cross_first - high * cross_second
    d_low += cos * same_first + sin * cross_first
    d_high += cos * same_second - sin * cross_second
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
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    Q_RANK: tl.constexpr,
    RANK: tl.constexpr,
    HALF: tl.constexpr,
    A_K: tl.constexpr,
    A_V: tl.constexpr,
    B_Q: tl.constexpr,
    B_K: tl.constexpr,
    B_V: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """TOKENS tokens."""
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
    inside = token < tokens
    planes = tl.broadcast_to(tl.arange(0, HALF)[None, :], [TOKENS, HALF])
    a = factors_ptr + token * WIDTH
    b = a + planes
    cos = tl.load(cos_sin_ptr + token * HALF + planes, mask=inside, other=0.0)
    sin = tl.load(cos_sin_ptr + (tokens + token) * HALF + planes, mask=inside, other=0.0)
    _store_rotated(
        a, b + B_Q, q_weight_ptr + planes, q_ptr + token * HEADS * 2 * HALF + planes,
        cos, sin, inside, epsilon, HEADS, Q_RANK, HALF,
    )  # fmt: skip
    _store_rotated(
        a + A_K, b + B_K, k_weight_ptr + planes, k_ptr + token * GROUPS * 2 * HALF + planes,
        cos, sin, inside, epsilon, GROUPS, RANK, HALF,
    )  # fmt: skip
    values = _load_halves(b + B_V, inside, RANK, HALF)
    target = v_ptr + token * GROUPS * 2 * HALF + planes
    for g in range(GROUPS):
        factors = _load_factors(a + A_V + g * RANK, inside, RANK)
        _store_halves(target + g * 2 * HALF, _compose(factors, values, RANK), inside, 1, HALF)


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
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    Q_RANK: tl.constexpr,
    RANK: tl.constexpr,
    HALF: tl.constexpr,
    A_K: tl.constexpr,
    A_V: tl.constexpr,
    B_Q: tl.constexpr,
    B_K: tl.constexpr,
    B_V: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    TILES: tl.constexpr,
):
    """TILES times TOKENS tokens; d_weights [programs, 4, HALF] gets their parts of both norms'."""
    planes = tl.broadcast_to(tl.arange(0, HALF)[None, :], [TOKENS, HALF])
    q_low = tl.zeros([TOKENS, HALF], tl.float32)
    q_high = tl.zeros([TOKENS, HALF], tl.float32)
    k_low = tl.zeros([TOKENS, HALF], tl.float32)
    k_high = tl.zeros([TOKENS, HALF], tl.float32)
    for tile in range(TILES):
        token = (tl.program_id(0).to(tl.int64) * TILES + tile) * TOKENS
        token += tl.arange(0, TOKENS)[:, None]
        inside = token < tokens
        a = factors_ptr + token * WIDTH
        b = a + planes
        da = d_factors_ptr + token * WIDTH
        db = da + planes
        angles = token * HALF + planes
        cos = tl.load(cos_sin_ptr + angles, mask=inside, other=0.0)
        sin = tl.load(cos_sin_ptr + tokens * HALF + angles, mask=inside, other=0.0)
        d_cos = tl.zeros([TOKENS, HALF], tl.float32)
        d_sin = tl.zeros([TOKENS, HALF], tl.float32)
        d_cos, d_sin, q_low, q_high = _rotated_gradient(
            a, b + B_Q, da, db + B_Q, q_weight_ptr + planes,
            dq_ptr + token * HEADS * 2 * HALF + planes, cos, sin, d_cos, d_sin, q_low, q_high,
            inside, epsilon, HEADS, Q_RANK, TOKENS, HALF,
        )  # fmt: skip
        d_cos, d_sin, k_low, k_high = _rotated_gradient(
            a + A_K, b + B_K, da + A_K, db + B_K, k_weight_ptr + planes,
            dk_ptr + token * GROUPS * 2 * HALF + planes, cos, sin, d_cos, d_sin, k_low, k_high,
            inside, epsilon, GROUPS, RANK, TOKENS, HALF,
        )  # fmt: skip
        tl.store(d_cos_sin_ptr + angles, d_cos, mask=inside)
        tl.store(d_cos_sin_ptr + tokens * HALF + angles, d_sin, mask=inside)
        grad_ptr = dv_ptr + token * GROUPS * 2 * HALF + planes
        values = _load_halves(b + B_V, inside, RANK, HALF)
        d_values = _zeros(RANK, TOKENS, HALF)
        for g in range(GROUPS):
            first, second = _load_halves(grad_ptr + g * 2 * HALF, inside, 1, HALF)
            factors = _load_factors(a + A_V + g * RANK, inside, RANK)
            d_values = _factor_gradients(
                da + A_V + g * RANK, factors, values, d_values,
                first.to(tl.float32), second.to(tl.float32), inside, RANK,
            )  # fmt: skip
        _store_halves(db + B_V, d_values, inside, RANK, HALF)
    target = d_weights_ptr + tl.program_id(0) * 4 * HALF + tl.arange(0, HALF)
    tl.store(target, tl.sum(q_low, axis=0))
    tl.store(target + HALF, tl.sum(q_high, axis=0))
    tl.store(target + 2 * HALF, tl.sum(k_low, axis=0))
    tl.store(target + 3 * HALF, tl.sum(k_high, axis=0))


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
        _forward_kernel[(triton.cdiv(tokens, _FORWARD["TOKENS"]),)](
            factors, cos_sin, q_weight, k_weight, query, key, value,
            **_arguments(tokens, shape), **_FORWARD,
        )  # fmt: skip
        ctx.save_for_backward(factors, q_weight, k_weight, cos_sin)
        ctx.shape = shape
        return query, key, value

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        factors, q_weight, k_weight, cos_sin = ctx.saved_tensors
        shape: TensorProductShape = ctx.shape
        tokens = factors.numel() // shape.width
        programs = triton.cdiv(tokens, _BACKWARD["TOKENS"] * _BACKWARD["TILES"])
        d_factors, d_cos_sin = torch.empty_like(factors), torch.empty_like(cos_sin)
        d_weights = cos_sin.new_empty((programs, 2, shape.channels))
        _backward_kernel[(programs,)](
            factors, cos_sin, q_weight, k_weight, *(grad.contiguous() for grad in grads),
            d_factors, d_cos_sin, d_weights,
            **_arguments(tokens, shape), **_BACKWARD,
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
        "HEADS": shape.heads,
        "GROUPS": shape.groups,
        "Q_RANK": shape.q_rank,
        "RANK": shape.rank,
        "HALF": shape.channels // 2,
        "A_K": a_k,
        "A_V": a_v,
        "B_Q": b_q,
        "B_K": b_k,
        "B_V": b_v,
        "WIDTH": shape.width,
    }
