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

import torch
import triton
import triton.language as tl

from vpmoe.optimizer.polar_express import LARGEST_ENTRY, SMALLEST_ENTRY

LARGEST_SIDE = 128
"""The largest smaller side of a matrix that a program takes."""

# Chosen by registers and spills as compiled for sm_90: 8 warps of 255, under 300 bytes spilled.
_BLOCK = 64
_WARPS = 8


class SmallMatrices:
    """Matrices of one shape, in parameters and stacks, that one launch steps.

    Tables of addresses go to the device only when a tensor has moved, without waiting for it.

    Args:
        weights: fp32 parameters [m, n] or [E, m, n], contiguous, on one device.
        momenta: M of each, of the same shape.
        seconds: v of each, [..., m, 1].
        coefficients: (a, b, c) of each iteration of Polar Express.
        safety_factor: sf of Polar Express.
        scratch_bytes: extra memory that a step may take; one matrix in bf16 at least.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        momenta: Sequence[torch.Tensor],
        seconds: Sequence[torch.Tensor],
        coefficients: Sequence[tuple[float, float, float]],
        safety_factor: float,
        scratch_bytes: int,
    ) -> None:
        self._m, self._n = weights[0].shape[-2:]
        self._device = weights[0].device
        self._tensors = list(zip(weights, momenta, seconds, strict=True))
        self._counts = [weight.numel() // (self._m * self._n) for weight in weights]
        self._coefficients = _to_device(coefficients, torch.float32, self._device)
        self._margin = 1.0 + safety_factor
        blocks = math.ceil(max(self._m, self._n) / _BLOCK)
        self._side = max(16, triton.next_power_of_2(min(self._m, self._n)))
        self._scratch = self._side * blocks * _BLOCK
        self._programs = max(1, scratch_bytes // (2 * self._scratch))
        if self._device.type == "cuda":
            # A program's registers fill a multiprocessor.
            processors = torch.cuda.get_device_properties(self._device).multi_processor_count
            self._programs = min(self._programs, processors)
        self._known: list[tuple[int, ...]] = []

    def step(
        self,
        gradients: Sequence[torch.Tensor | None],
        keep: float | torch.Tensor,
        rate: float | torch.Tensor,
        *,
        momentum: float,
        beta2: float,
        eps: float,
    ) -> None:
        """Steps every parameter in place that has a gradient.

        Args:
            gradients: fp32 and contiguous, of the weights' shapes.
            keep: what the weights are multiplied with, a number or an fp32 scalar on the device.
            rate: what the normalised updates are multiplied with before they are added, likewise.
            momentum: mu.
            beta2: decay of v.
            eps: added to v.
        """
        found: list[tuple[int, ...]] = [
            () if g is None else (w.data_ptr(), g.data_ptr(), m.data_ptr(), v.data_ptr())
            for g, (w, m, v) in zip(gradients, self._tensors, strict=True)
        ]
        if found != self._known:
            self._upload(found)
        count = self._matrices.shape[0]
        if count == 0:
            return
        # As few rounds as there may be programs for, all equally full.
        grid = math.ceil(count / math.ceil(count / self._programs))
        scratch = torch.empty(grid * self._scratch, dtype=torch.bfloat16, device=self._device)
        _step_kernel[(grid,)](
            self._addresses,
            self._matrices,
            self._coefficients,
            scratch,
            count,
            self._coefficients.shape[0],
            max(self._m, self._n),
            min(self._m, self._n),
            keep,
            rate,
            momentum,
            beta2,
            eps,
            self._margin,
            SMALLEST_ENTRY,
            LARGEST_ENTRY,
            LOADED=isinstance(rate, torch.Tensor),
            TALL=self._m > self._n,
            SIDE=self._side,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )

    def _upload(self, found: list[tuple[int, ...]]) -> None:
        present = [(row, k) for row, k in zip(found, self._counts, strict=True) if row]
        self._addresses = _to_device([row for row, _ in present], torch.int64, self._device)
        places = [(index, k) for index, (_, count) in enumerate(present) for k in range(count)]
        self._matrices = _to_device(places, torch.int32, self._device)
        self._known = found


def _to_device(
    values: Sequence[Sequence[float]], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    tensor = torch.tensor(values, dtype=dtype)
    if device.type == "cuda":
        # From pinned memory, so that nothing waits for the copy.
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor


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
    left, right = (tl.trans(x), x) if TALL else (x, tl.trans(x))
    return tl.dot(left, right, accumulator)


@triton.jit
def _polynomial(gram, b, c):
    """b A + c A^2 of a Gram matrix, in bf16.

    Both terms see the same rounded A: near 1 the polynomial hardly depends on A, but on a
    difference between the two it does.
    """
    rounded = gram.to(tl.bfloat16)
    return (b * rounded.to(tl.float32) + c * tl.dot(rounded, rounded)).to(tl.bfloat16)


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
    rate,
    momentum,
    beta2,
    eps,
    margin,
    smallest,
    largest,
    LOADED: tl.constexpr,
    TALL: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if LOADED:
        keep = tl.load(keep)
        rate = tl.load(rate)
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
        highest = tl.full((), 0.0, tl.float32)
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
        rescale = tl.where(after == 0, 0.0, tl.sqrt(before / after)) * rate

        for block in range(blocks):
            offsets, places, exists = _tile(block, side, length, TALL, SIDE, BLOCK)
            row = block * BLOCK + tl.arange(0, BLOCK) if TALL else short
            s = tl.load(second + row, mask=row < rows, other=0.0)
            factor = rescale / tl.sqrt(s + eps)
            w = tl.load(weight + offsets, mask=exists, other=0.0)
            o = tl.load(own + places).to(tl.float32)
            tl.store(weight + offsets, w * keep + factor[:, None] * o, mask=exists)
