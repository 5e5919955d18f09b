"""Tokens sorted by expert, without a sort: every place is counted, in Triton.

Blocks of tokens count their tokens of each expert; the running sum over experts and blocks is where
a block's tokens of an expert begin; within the block they keep their order. Moving rows there and
adding up the rows that came from a token are each other's gradients. No atomics, so everything is
deterministic, and nothing waits for the device.
"""

# Triton kernels take pointers and constexprs, which have no Python types.
# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

_BLOCK_ELEMENTS = 4096
_ACTIVATION_ELEMENTS = 2048


@triton.jit
def _count_kernel(map_ptr, counts_ptr, n, BLOCK: tl.constexpr, EXPERTS: tl.constexpr):
    """Tokens of each expert in one block of tokens: counts [experts, blocks]."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    experts = tl.arange(0, EXPERTS)
    place = rows[:, None].to(tl.int64) * EXPERTS + experts[None, :]
    chosen = tl.load(map_ptr + place, mask=rows[:, None] < n, other=0).to(tl.int32)
    tl.store(counts_ptr + experts * tl.num_programs(0) + tl.program_id(0), tl.sum(chosen, axis=0))


@triton.jit
def _place_kernel(
    map_ptr,
    probs_ptr,
    begins_ptr,
    positions_ptr,
    permuted_probs_ptr,
    n,
    TOPK: tl.constexpr,
    BLOCK: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    """The places of a block's tokens, [n, TOPK] in order of the experts, and the probabilities."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    experts = tl.arange(0, EXPERTS)
    place = rows[:, None].to(tl.int64) * EXPERTS + experts[None, :]
    inside = rows[:, None] < n
    chosen = tl.load(map_ptr + place, mask=inside, other=0).to(tl.int32)
    begins = tl.load(begins_ptr + experts * tl.num_programs(0) + tl.program_id(0))
    position = begins[None, :] + tl.cumsum(chosen, axis=0) - chosen
    slot = tl.cumsum(chosen, axis=1) - chosen
    valid = (chosen > 0) & (slot < TOPK)
    tl.store(positions_ptr + rows[:, None] * TOPK + slot, position, mask=valid)
    probs = tl.load(probs_ptr + place, mask=valid, other=0.0)
    tl.store(permuted_probs_ptr + position, probs, mask=valid)


@triton.jit
def _probs_gradient_kernel(
    map_ptr,
    positions_ptr,
    d_permuted_ptr,
    d_probs_ptr,
    n,
    TOPK: tl.constexpr,
    BLOCK: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    """The gradient of the probabilities [n, experts], zero where no expert was chosen."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    experts = tl.arange(0, EXPERTS)
    place = rows[:, None].to(tl.int64) * EXPERTS + experts[None, :]
    inside = rows[:, None] < n
    chosen = tl.load(map_ptr + place, mask=inside, other=0).to(tl.int32)
    slot = tl.cumsum(chosen, axis=1) - chosen
    valid = (chosen > 0) & (slot < TOPK)
    position = tl.load(positions_ptr + rows[:, None] * TOPK + slot, mask=valid, other=0)
    gradient = tl.load(d_permuted_ptr + position, mask=valid, other=0.0)
    tl.store(d_probs_ptr + place, gradient, mask=inside)


@triton.jit
def _permute_kernel(x_ptr, positions_ptr, out_ptr, width, TOPK: tl.constexpr, BLOCK: tl.constexpr):
    """Copies one token's row to each of its places."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + token * width + columns, mask=columns < width, other=0.0)
    for slot in tl.static_range(TOPK):
        position = tl.load(positions_ptr + token * TOPK + slot).to(tl.int64)
        tl.store(out_ptr + position * width + columns, x, mask=columns < width)


@triton.jit
def _unpermute_kernel(
    x_ptr, positions_ptr, out_ptr, width, TOPK: tl.constexpr, BLOCK: tl.constexpr
):
    """Adds up, in fp32 and in order of the experts, the rows at one token's places."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for slot in tl.static_range(TOPK):
        position = tl.load(positions_ptr + token * TOPK + slot).to(tl.int64)
        row = tl.load(x_ptr + position * width + columns, mask=columns < width, other=0.0)
        total += row.to(tl.float32)
    tl.store(
        out_ptr + token * width + columns,
        total.to(out_ptr.dtype.element_ty),
        mask=columns < width,
    )


@triton.jit
def _weighted_square_kernel(
    x_ptr, probs_ptr, out_ptr, rows_count, width, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """relu(x)^2 times the row's probability."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = (rows[:, None] < rows_count) & (columns[None, :] < width)
    place = rows[:, None].to(tl.int64) * width + columns[None, :]
    x = tl.maximum(tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32), 0.0)
    probs = tl.load(probs_ptr + rows, mask=rows < rows_count, other=0.0).to(tl.float32)
    y = x * x * probs[:, None]
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _weighted_square_gradient_kernel(
    x_ptr,
    probs_ptr,
    grad_ptr,
    dx_ptr,
    d_probs_ptr,
    rows_count,
    width,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of `_weighted_square_kernel`."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = (rows[:, None] < rows_count) & (columns[None, :] < width)
    place = rows[:, None].to(tl.int64) * width + columns[None, :]
    x = tl.maximum(tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32), 0.0)
    grad = tl.load(grad_ptr + place, mask=inside, other=0.0).to(tl.float32)
    probs = tl.load(probs_ptr + rows, mask=rows < rows_count, other=0.0).to(tl.float32)
    dx = 2.0 * x * grad * probs[:, None]
    tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(d_probs_ptr + rows, tl.sum(x * x * grad, axis=1), mask=rows < rows_count)


@dataclass(frozen=True)
class Permutation:
    """Where tokens go.

    Attributes:
        positions: int32 [n, topk], each token's places in order of its experts.
        tokens_per_expert: int32 [experts].
    """

    positions: torch.Tensor
    tokens_per_expert: torch.Tensor


class _Plan(torch.autograd.Function):
    """Forward and backward of `plan_permutation`."""

    @staticmethod
    def forward(
        ctx: Any, probs: torch.Tensor, routing_map: torch.Tensor, topk: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        n, experts = routing_map.shape
        device = probs.device
        chosen = routing_map.contiguous().view(torch.uint8)
        block = _block(experts)
        blocks = triton.cdiv(n, block)
        counts = torch.empty((experts, blocks), dtype=torch.int32, device=device)
        _count_kernel[(blocks,)](chosen, counts, n, BLOCK=block, EXPERTS=experts)
        begins = counts.view(-1).cumsum(0, dtype=torch.int32).view_as(counts) - counts
        positions = torch.empty((n, topk), dtype=torch.int32, device=device)
        permuted = torch.empty(n * topk, dtype=probs.dtype, device=device)
        _place_kernel[(blocks,)](
            chosen,
            probs.contiguous(),
            begins,
            positions,
            permuted,
            n,
            TOPK=topk,
            BLOCK=block,
            EXPERTS=experts,
        )
        tokens_per_expert = counts.sum(1, dtype=torch.int32)
        ctx.save_for_backward(chosen, positions)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(positions, tokens_per_expert)
        return permuted, positions, tokens_per_expert

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, None, None]:
        if grads[0] is None:
            return None, None, None
        chosen, positions = ctx.saved_tensors
        n, experts = chosen.shape
        d_probs = torch.empty((n, experts), dtype=grads[0].dtype, device=chosen.device)
        block = _block(experts)
        _probs_gradient_kernel[(triton.cdiv(n, block),)](
            chosen,
            positions,
            grads[0].contiguous(),
            d_probs,
            n,
            TOPK=positions.shape[1],
            BLOCK=block,
            EXPERTS=experts,
        )
        return d_probs, None, None


class _Permute(torch.autograd.Function):
    """Forward and backward of `permute`."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(positions)
        return _permute(tokens, positions)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _unpermute(grads[0], *ctx.saved_tensors), None


class _Unpermute(torch.autograd.Function):
    """Forward and backward of `unpermute`."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(positions)
        return _unpermute(rows, positions)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _permute(grads[0], *ctx.saved_tensors), None


class _WeightedSquare(torch.autograd.Function):
    """Forward and backward of `weighted_squared_relu`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        x, probs = x.contiguous(), probs.contiguous()
        out = torch.empty_like(x)
        _weighted_square_kernel[_activation_grid(x)](
            x, probs, out, *x.shape, **_activation_block(x)
        )
        ctx.save_for_backward(x, probs)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, probs = ctx.saved_tensors
        dx, d_probs = torch.empty_like(x), torch.empty_like(probs)
        _weighted_square_gradient_kernel[_activation_grid(x)](
            x, probs, grads[0].contiguous(), dx, d_probs, *x.shape, **_activation_block(x)
        )
        return dx, d_probs


def plan_permutation(
    probs: torch.Tensor, routing_map: torch.Tensor, topk: int
) -> tuple[Permutation, torch.Tensor]:
    """Counts out where tokens go.

    Args:
        probs: [n, experts].
        routing_map: bool [n, experts], exactly topk true in each row; a power of two of experts.
        topk: experts of a token.

    Returns:
        The permutation, and probs of the chosen experts in its order, [n * topk], differentiable.
    """
    permuted, positions, tokens_per_expert = _Plan.apply(probs, routing_map, topk)
    return Permutation(positions, tokens_per_expert), permuted


def permute(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Copies tokens [n, width] to their places, [n * topk, width]."""
    out: torch.Tensor = _Permute.apply(tokens, positions)
    return out


def unpermute(rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Adds up the rows [n * topk, width] at each token's places, in fp32: [n, width]."""
    out: torch.Tensor = _Unpermute.apply(rows, positions)
    return out


def weighted_squared_relu(x: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """relu(x)^2 * probs[:, None], computed in fp32: x [n, width], probs [n]."""
    out: torch.Tensor = _WeightedSquare.apply(x, probs)
    return out


def _permute(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    (n, topk), width = positions.shape, tokens.shape[-1]
    out = torch.empty((n * topk, width), dtype=tokens.dtype, device=tokens.device)
    _permute_kernel[(n,)](
        tokens.contiguous(), positions, out, width, TOPK=topk, BLOCK=triton.next_power_of_2(width)
    )
    return out


def _unpermute(rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    (n, topk), width = positions.shape, rows.shape[-1]
    out = torch.empty((n, width), dtype=rows.dtype, device=rows.device)
    _unpermute_kernel[(n,)](
        rows.contiguous(), positions, out, width, TOPK=topk, BLOCK=triton.next_power_of_2(width)
    )
    return out


def _block(experts: int) -> int:
    """Tokens of a block; a power of two."""
    return max(1, min(256, _BLOCK_ELEMENTS // experts))


def _activation_block(x: torch.Tensor) -> dict[str, int]:
    block = triton.next_power_of_2(x.shape[1])
    return {"ROWS": max(1, _ACTIVATION_ELEMENTS // block), "BLOCK": block}


def _activation_grid(x: torch.Tensor) -> tuple[int]:
    return (triton.cdiv(x.shape[0], _activation_block(x)["ROWS"]),)
