"""NorMuon's whole step in one launch for many small CUDA matrices: momentum to weight update.

One program keeps a matrix's Gram matrix in registers and the matrix in bf16 scratch that stays in
the L2 cache, so each weight, gradient and momentum passes through device memory once. Weights are
found through a table of addresses: separate parameters and stacks need no copies. Matrices don't
share sums, so a step is deterministic.
"""

# Triton kernels take pointers and constexprs, which have no Python types.
# mypy: allow-untyped-defs

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

LARGEST_SIDE = 128
"""The smaller side of a matrix that a program takes."""

_BLOCK = 64
_WARPS = 8


@dataclass(frozen=True)
class KernelInputs:
    """Device tables of what one launch works on.

    Attributes:
        addresses: int64 [p, 4]: weight, gradient, momentum and second moment of each parameter,
            fp32 and contiguous.
        matrices: int32 [k, 2]: parameter and position in its stack of each matrix.
        coefficients: fp32 [iterations, 3] of Polar Express.
        scratch: bf16, `scratch_elements(m, n)` for each program that runs at once.
    """

    addresses: torch.Tensor
    matrices: torch.Tensor
    coefficients: torch.Tensor
    scratch: torch.Tensor


def takes(m: int, n: int) -> bool:
    """Whether the kernel takes matrices of this shape."""
    return min(m, n) <= LARGEST_SIDE


def scratch_elements(m: int, n: int) -> int:
    """bf16 elements of scratch that a program needs for a matrix [m, n]."""
    return _padded_side(m, n) * math.ceil(max(m, n) / _BLOCK) * _BLOCK


def step(
    inputs: KernelInputs,
    shape: tuple[int, int],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    beta2: float,
    eps: float,
    safety_factor: float,
    limits: Sequence[float],
) -> None:
    """Steps matrices [m, n] in place.

    Args:
        inputs: tables and scratch.
        shape: (m, n).
        lr: learning rate.
        weight_decay: decoupled, times lr.
        momentum: mu.
        beta2: decay of the second moment.
        eps: added to the second moment.
        safety_factor: sf of Polar Express.
        limits: entries outside (smallest, largest) are scaled by a power of two first.
    """
    m, n = shape
    programs = inputs.scratch.numel() // scratch_elements(m, n)
    count = inputs.matrices.shape[0]
    # As few rounds as the scratch allows, all equally full.
    grid = math.ceil(count / math.ceil(count / programs))
    _step_kernel[(grid,)](
        inputs.addresses,
        inputs.matrices,
        inputs.coefficients,
        inputs.scratch,
        count,
        inputs.coefficients.shape[0],
        n if m <= n else m,
        m if m <= n else n,
        1.0 - lr * weight_decay,
        -lr * math.sqrt(max(1.0, m / n)),
        momentum,
        beta2,
        eps,
        1.0 + safety_factor,
        *limits,
        TALL=m > n,
        SIDE=_padded_side(m, n),
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )


def _padded_side(m: int, n: int) -> int:
    return max(16, triton.next_power_of_2(min(m, n)))


@triton.jit
def _tile(block, side, length, TALL: tl.constexpr, SIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets of a tile's entries in the matrix and in the scratch, and which of them exist.

    A tile is [SIDE, BLOCK] of a wide matrix [side, length], [BLOCK, SIDE] of a tall one.
    """
    short = tl.arange(0, SIDE)
    long = block * BLOCK + tl.arange(0, BLOCK)
    if TALL:
        offsets = long[:, None] * side + short[None, :]
        scratch = long[:, None] * SIDE + short[None, :]
        exists = (long[:, None] < length) & (short[None, :] < side)
    else:
        offsets = short[:, None] * length + long[None, :]
        scratch = block * SIDE * BLOCK + short[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        exists = (short[:, None] < side) & (long[None, :] < length)
    return offsets, scratch, exists


@triton.jit
def _gram(x, accumulator, TALL: tl.constexpr):
    """The tile's part of the Gram matrix [SIDE, SIDE] of the smaller side."""
    if TALL:
        result = tl.dot(tl.trans(x), x, accumulator)
    else:
        result = tl.dot(x, tl.trans(x), accumulator)
    return result


@triton.jit
def _polynomial(gram, b, c):
    """b A + c A^2 of a Gram matrix, in bf16."""
    half = gram.to(tl.bfloat16)
    return (b * gram + c * tl.dot(half, half)).to(tl.bfloat16)


@triton.jit
def _iterated(x, polynomial, a, scale, TALL: tl.constexpr):
    """scale (a X + P X) of a tile, in bf16."""
    product = tl.dot(x, polynomial) if TALL else tl.dot(polynomial, x)
    return (scale * (a * x.to(tl.float32) + product)).to(tl.bfloat16)


@triton.jit
def _step_kernel(
    addresses,
    matrices,
    coefficients,
    scratch,
    count,
    iterations,
    length,
    side,
    keep,
    minus_rate,
    momentum,
    beta2,
    eps,
    margin,
    smallest,
    largest,
    TALL: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(length, BLOCK)
    columns = side if TALL else length
    rows = length if TALL else side
    own = scratch + tl.program_id(0).to(tl.int64) * blocks * SIDE * BLOCK
    short = tl.arange(0, SIDE)
    for item in range(tl.program_id(0), count, tl.num_programs(0)):
        entry = addresses + 4 * tl.load(matrices + 2 * item).to(tl.int64)
        stacked = tl.load(matrices + 2 * item + 1).to(tl.int64)
        pointer = tl.pointer_type(tl.float32)
        weight = tl.load(entry).to(pointer) + stacked * side * length
        gradient = tl.load(entry + 1).to(pointer) + stacked * side * length
        buffer = tl.load(entry + 2).to(pointer) + stacked * side * length
        second = tl.load(entry + 3).to(pointer) + stacked * rows

        # Momentum and Nesterov; the scratch of the matrix before is no longer read.
        tl.debug_barrier()
        highest = 0.0
        for block in range(blocks):
            offsets, places, exists = _tile(block, side, length, TALL, SIDE, BLOCK)
            g = tl.load(gradient + offsets, mask=exists, other=0.0)
            v = tl.load(buffer + offsets, mask=exists, other=0.0)
            v = v + (1.0 - momentum) * (g - v)
            tl.store(buffer + offsets, v, mask=exists)
            u = (g + momentum * (v - g)).to(tl.bfloat16)
            tl.store(own + places, u)
            highest = tl.maximum(highest, tl.max(tl.max(tl.abs(u.to(tl.float32)), 1), 0))
        tl.debug_barrier()

        # A power of two for entries whose squares would leave fp32's range.
        exponent = (highest.to(tl.int32, bitcast=True) >> 23) - 126
        exponent = tl.minimum(tl.maximum(exponent, -126), 126)
        outside = ((highest < smallest) | (highest > largest)) & (highest > 0)
        power = tl.where(outside, ((127 - exponent) << 23).to(tl.float32, bitcast=True), 1.0)

        gram = tl.zeros((SIDE, SIDE), tl.float32)
        for block in range(blocks):
            _, places, _ = _tile(block, side, length, TALL, SIDE, BLOCK)
            x = tl.load(own + places)
            if outside:
                x = (x.to(tl.float32) * power).to(tl.bfloat16)
                tl.store(own + places, x)
            gram = _gram(x, gram, TALL)
        tl.debug_barrier()
        squares = tl.sum(tl.sum(tl.where(short[:, None] == short[None, :], gram, 0.0), 1), 0)
        scale = 1.0 / (tl.sqrt(squares) * margin + 1e-6)
        gram *= scale * scale

        for iteration in range(iterations - 1):
            a = tl.load(coefficients + 3 * iteration)
            b = tl.load(coefficients + 3 * iteration + 1)
            c = tl.load(coefficients + 3 * iteration + 2)
            polynomial = _polynomial(gram, b, c)
            gram = tl.zeros((SIDE, SIDE), tl.float32)
            for block in range(blocks):
                _, places, _ = _tile(block, side, length, TALL, SIDE, BLOCK)
                x = _iterated(tl.load(own + places), polynomial, a, scale, TALL)
                tl.store(own + places, x)
                gram = _gram(x, gram, TALL)
            tl.debug_barrier()
            scale = 1.0

        # The last iteration, with the rows' second moment and ||O||, ||O / sqrt(v + eps)|| from it.
        a = tl.load(coefficients + 3 * iterations - 3)
        b = tl.load(coefficients + 3 * iterations - 2)
        c = tl.load(coefficients + 3 * iterations - 1)
        polynomial = _polynomial(gram, b, c)
        before = 0.0
        after = 0.0
        sums = tl.zeros((SIDE,), tl.float32)
        for block in range(blocks):
            _, places, _ = _tile(block, side, length, TALL, SIDE, BLOCK)
            x = _iterated(tl.load(own + places), polynomial, a, scale, TALL)
            tl.store(own + places, x)
            square = x.to(tl.float32) * x.to(tl.float32)
            if TALL:
                row = block * BLOCK + tl.arange(0, BLOCK)
                of_row = tl.sum(square, 1)
                s = tl.load(second + row, mask=row < rows, other=0.0)
                s = s + (1.0 - beta2) * (of_row / columns - s)
                tl.store(second + row, s, mask=row < rows)
                before += tl.sum(of_row, 0)
                after += tl.sum(of_row / (s + eps), 0)
            else:
                sums += tl.sum(square, 1)
        if not TALL:
            s = tl.load(second + short, mask=short < rows, other=0.0)
            s = s + (1.0 - beta2) * (sums / columns - s)
            tl.store(second + short, s, mask=short < rows)
            before = tl.sum(sums, 0)
            after = tl.sum(sums / (s + eps), 0)
        tl.debug_barrier()
        rescale = tl.where(after == 0, 0.0, tl.sqrt(before / after)) * minus_rate

        for block in range(blocks):
            offsets, places, exists = _tile(block, side, length, TALL, SIDE, BLOCK)
            row = block * BLOCK + tl.arange(0, BLOCK) if TALL else short
            s = tl.load(second + row, mask=row < rows, other=0.0)
            factor = rescale / tl.sqrt(s + eps)
            w = tl.load(weight + offsets, mask=exists, other=0.0)
            o = tl.load(own + places).to(tl.float32)
            tl.store(weight + offsets, w * keep + factor[:, None] * o, mask=exists)
