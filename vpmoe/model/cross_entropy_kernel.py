"""The chunked loss's passes over memory in Triton, one kernel each.

Softmax statistics of rows of logits, the gradient in the logits' place, and the finished gradients
times the factor that the backward pass brings.
"""

# Triton kernels take pointers and constexprs, which have no Python types.
# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 4096
_WARPS = 8


@triton.jit
def _statistics_kernel(
    logits_ptr, labels_ptr, high_ptr, total_ptr, target_ptr, row_stride, first, vocab,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: its maximum, the sum of exp(x - maximum), and its label's logit or 0."""
    row = tl.program_id(0)
    logits = logits_ptr + row.to(tl.int64) * row_stride
    high = float("-inf")
    total = 0.0
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(logits + columns, mask=columns < vocab, other=float("-inf")).to(tl.float32)
        new_high = tl.maximum(high, tl.max(x, 0))
        total = total * tl.exp(high - new_high) + tl.sum(tl.exp(x - new_high), 0)
        high = new_high
    column = tl.load(labels_ptr + row) - first
    own = (column >= 0) & (column < vocab)
    target = tl.load(logits + column, mask=own, other=0.0).to(tl.float32)
    tl.store(high_ptr + row, high)
    tl.store(total_ptr + row, total)
    tl.store(target_ptr + row, target)


@triton.jit
def _gradient_kernel(
    logits_ptr, labels_ptr, normaliser_ptr, upstream_ptr, row_stride, first, vocab,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A part of a row: (exp(x - normaliser) - onehot) * upstream, in place."""
    row = tl.program_id(1)
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    logits = logits_ptr + row.to(tl.int64) * row_stride + columns
    x = tl.load(logits, mask=columns < vocab, other=float("-inf")).to(tl.float32)
    column = tl.load(labels_ptr + row) - first
    softmax = tl.exp(x - tl.load(normaliser_ptr + row))
    gradient = (softmax - tl.where(columns == column, 1.0, 0.0)) * tl.load(upstream_ptr + row)
    tl.store(logits, gradient.to(logits_ptr.dtype.element_ty), mask=columns < vocab)


@triton.jit
def _scale_kernel(tensor_ptr, factor_ptr, out_ptr, count, BLOCK: tl.constexpr):
    """One block of elements times the factor."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(tensor_ptr + places, mask=places < count)
    factor = tl.load(factor_ptr)
    product = x.to(factor.dtype) * factor
    tl.store(out_ptr + places, product.to(out_ptr.dtype.element_ty), mask=places < count)


def row_statistics(
    logits: torch.Tensor, labels: torch.Tensor, first: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The maximum of each row, its sum of exp(x - maximum), and its label's logit.

    Args:
        logits: [n, vocab], rows contiguous.
        labels: int64 [n].
        first: the token of column 0.

    Returns:
        fp32 [n] each; the logit is 0 where the label is none of the columns.
    """
    rows, vocab = logits.shape
    results = [torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(3)]
    _statistics_kernel[(rows,)](
        logits, labels, *results, logits.stride(0), first, vocab, BLOCK=_BLOCK, num_warps=_WARPS
    )
    high, total, target = results
    return high, total, target


def differentiate_rows_(
    logits: torch.Tensor,
    labels: torch.Tensor,
    normaliser: torch.Tensor,
    upstream: torch.Tensor,
    first: int,
) -> None:
    """Overwrites logits with (softmax - onehot(label)) * upstream.

    Args:
        logits: [n, vocab], rows contiguous.
        labels: int64 [n].
        normaliser: fp32 [n], the logarithm of the softmax's denominator.
        upstream: fp32 [n].
        first: the token of column 0.
    """
    rows, vocab = logits.shape
    _gradient_kernel[(triton.cdiv(vocab, _BLOCK), rows)](
        logits, labels, normaliser, upstream.contiguous(), logits.stride(0), first, vocab,
        BLOCK=_BLOCK, num_warps=_WARPS,
    )  # fmt: skip


def scaled(tensor: torch.Tensor, factor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Computes tensor * factor in the factor's dtype, rounded to dtype.

    torch.mul does not vectorise operands of several dtypes.

    Args:
        tensor: any shape, its elements without gaps.
        factor: one element, fp32 or wider.
        dtype: of the result.

    Returns:
        The product, of the tensor's shape.
    """
    out = torch.empty_like(tensor, dtype=dtype)
    count = tensor.numel()
    _scale_kernel[(triton.cdiv(count, _BLOCK),)](
        tensor, factor, out, count, BLOCK=_BLOCK, num_warps=_WARPS
    )
    return out
