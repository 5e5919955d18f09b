"""Fused attention for CUDA: window, ALiBi, softmax offset and documents inside one Triton kernel.

Online-softmax attention (Dao, 2023) that visits only the key blocks a window reaches. Logits, bias
and softmax are fp32; nothing of size [T, T] exists in memory. The backward pass recomputes the
probabilities from the saved log-sum-exp; each output element is summed by one program in a fixed
order, so the gradients are deterministic.
"""

# Triton kernels take pointers and constexprs, which have no Python types.
# mypy: allow-untyped-defs

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl

from vpmoe.model.attention.pattern import AttentionPattern

_LOG2_E = math.log2(math.e)


@triton.jit
def _logits(
    q,
    k,
    rows,
    cols,
    documents,
    batch,
    slope,
    scale,
    length,
    WINDOW: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    HAS_DOCUMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Base-2 logits of a block, -inf where masked: q [m, d], k [n, d], rows [m], cols [n]."""
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    distance = rows[:, None] - cols[None, :]
    if HAS_SLOPES:
        logits -= slope * distance.to(tl.float32)
    allowed = (distance >= 0) & (rows[:, None] < length)
    if WINDOW > 0:
        allowed &= distance < WINDOW
    if HAS_DOCUMENTS:
        own = tl.load(documents + batch * length + rows, mask=rows < length, other=-1)
        other = tl.load(documents + batch * length + cols, mask=cols < length, other=-2)
        allowed &= own[:, None] == other[None, :]
    return tl.where(allowed, logits, float("-inf"))


@triton.jit
def _forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    offset_ptr,
    slope_ptr,
    documents,
    out_ptr,
    lse_ptr,
    q_s,
    q_b,
    q_h,
    k_s,
    k_b,
    k_h,
    v_s,
    v_b,
    v_h,
    o_s,
    o_b,
    o_h,
    length,
    heads,
    heads_per_group,
    scale,
    WINDOW: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    HAS_DOCUMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One block of queries of one head: out and the base-2 log-sum-exp, offset included."""
    block = tl.program_id(0)
    head = tl.program_id(1) % heads
    batch = tl.program_id(1) // heads
    group = head // heads_per_group
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, D)
    q = tl.load(
        q_ptr + rows[:, None].to(tl.int64) * q_s + batch * q_b + head * q_h + dims[None, :],
        mask=rows[:, None] < length,
        other=0.0,
    )
    slope = 0.0
    if HAS_SLOPES:
        slope = tl.load(slope_ptr + head)
    high = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(0, block * BLOCK_M - (WINDOW - 1)) // BLOCK_N * BLOCK_N
    last = tl.minimum(length, (block + 1) * BLOCK_M)
    for start in range(first, last, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        inside = cols[:, None] < length
        column = cols[:, None].to(tl.int64)
        k = tl.load(
            k_ptr + column * k_s + batch * k_b + group * k_h + dims[None, :],
            mask=inside,
            other=0.0,
        )
        logits = _logits(
            q, k, rows, cols, documents, batch, slope, scale, length,
            WINDOW, HAS_SLOPES, HAS_DOCUMENTS, PRECISION,
        )  # fmt: skip
        new_high = tl.maximum(high, tl.max(logits, 1))
        # A row may have met no allowed key yet.
        finite = tl.where(new_high == float("-inf"), 0.0, new_high)
        p = tl.exp2(logits - finite[:, None])
        correction = tl.exp2(high - finite)
        total = total * correction + tl.sum(p, 1)
        v = tl.load(
            v_ptr + column * v_s + batch * v_b + group * v_h + dims[None, :],
            mask=inside,
            other=0.0,
        )
        acc = acc * correction[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        high = new_high
    if HAS_OFFSET:
        sink = tl.load(offset_ptr + head).to(tl.float32) * 1.4426950408889634
        new_high = tl.maximum(high, sink)
        finite = tl.where(new_high == float("-inf"), 0.0, new_high)
        correction = tl.exp2(high - finite)
        total = total * correction + tl.exp2(sink - finite)
        acc = acc * correction[:, None]
        high = finite
    # Rows past the end have no keys; their results are not stored.
    total = tl.where(rows < length, total, 1.0)
    tl.store(
        out_ptr + rows[:, None].to(tl.int64) * o_s + batch * o_b + head * o_h + dims[None, :],
        (acc / total[:, None]).to(out_ptr.dtype.element_ty),
        mask=rows[:, None] < length,
    )
    tl.store(
        lse_ptr + tl.program_id(1).to(tl.int64) * length + rows,
        high + tl.log2(total),
        mask=rows < length,
    )


@triton.jit
def _query_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    slope_ptr,
    documents,
    out_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    offset_ptr,
    d_offset_ptr,
    q_s,
    q_b,
    q_h,
    k_s,
    k_b,
    k_h,
    v_s,
    v_b,
    v_h,
    o_s,
    o_b,
    o_h,
    length,
    heads,
    heads_per_group,
    scale,
    WINDOW: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    HAS_DOCUMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dq of one block of queries, and delta = sum(dout * out), which dk and dv need as well.

    out, dout and dq share one layout: [s, b, h, d] contiguous. d_offset [b * h, blocks] gets this
    block's part of the offset's gradient: the extra column has value 0, so its logit's gradient is
    -p delta.
    """
    block = tl.program_id(0)
    head = tl.program_id(1) % heads
    batch = tl.program_id(1) // heads
    group = head // heads_per_group
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, D)
    row = rows[:, None].to(tl.int64)
    valid = rows[:, None] < length
    output = row * o_s + batch * o_b + head * o_h + dims[None, :]
    q = tl.load(q_ptr + row * q_s + batch * q_b + head * q_h + dims[None, :], mask=valid, other=0.0)
    grad = tl.load(grad_ptr + output, mask=valid, other=0.0)
    out = tl.load(out_ptr + output, mask=valid, other=0.0)
    delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
    line = tl.program_id(1).to(tl.int64) * length + rows
    tl.store(delta_ptr + line, delta, mask=rows < length)
    lse = tl.load(lse_ptr + line, mask=rows < length, other=float("inf"))
    if HAS_OFFSET:
        sink = tl.load(offset_ptr + head).to(tl.float32) * 1.4426950408889634
        part = -tl.sum(tl.exp2(sink - lse) * delta, 0)
        tl.store(d_offset_ptr + tl.program_id(1) * tl.num_programs(0) + block, part)
    slope = 0.0
    if HAS_SLOPES:
        slope = tl.load(slope_ptr + head)
    dq = tl.zeros([BLOCK_M, D], tl.float32)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(0, block * BLOCK_M - (WINDOW - 1)) // BLOCK_N * BLOCK_N
    last = tl.minimum(length, (block + 1) * BLOCK_M)
    for start in range(first, last, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        inside = cols[:, None] < length
        column = cols[:, None].to(tl.int64)
        k = tl.load(
            k_ptr + column * k_s + batch * k_b + group * k_h + dims[None, :],
            mask=inside,
            other=0.0,
        )
        v = tl.load(
            v_ptr + column * v_s + batch * v_b + group * v_h + dims[None, :],
            mask=inside,
            other=0.0,
        )
        logits = _logits(
            q, k, rows, cols, documents, batch, slope, scale, length,
            WINDOW, HAS_SLOPES, HAS_DOCUMENTS, PRECISION,
        )  # fmt: skip
        p = tl.exp2(logits - lse[:, None])
        dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        dq += tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
    # scale carries log2(e), for base-2 exponentials.
    dq *= scale * 0.6931471805599453
    tl.store(dq_ptr + output, dq.to(dq_ptr.dtype.element_ty), mask=valid)


@triton.jit
def _key_value_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    slope_ptr,
    documents,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    q_s,
    q_b,
    q_h,
    k_s,
    k_b,
    k_h,
    v_s,
    v_b,
    v_h,
    o_s,
    o_b,
    o_h,
    d_s,
    d_b,
    d_h,
    length,
    groups,
    heads_per_group,
    scale,
    WINDOW: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    HAS_DOCUMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dk and dv of one block of keys, summed over the heads of its group."""
    block = tl.program_id(0)
    group = tl.program_id(1) % groups
    batch = tl.program_id(1) // groups
    cols = block * BLOCK_N + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, D)
    column = cols[:, None].to(tl.int64)
    inside = cols[:, None] < length
    k = tl.load(
        k_ptr + column * k_s + batch * k_b + group * k_h + dims[None, :], mask=inside, other=0.0
    )
    v = tl.load(
        v_ptr + column * v_s + batch * v_b + group * v_h + dims[None, :], mask=inside, other=0.0
    )
    dk = tl.zeros([BLOCK_N, D], tl.float32)
    dv = tl.zeros([BLOCK_N, D], tl.float32)
    first = block * BLOCK_N // BLOCK_M * BLOCK_M
    last = length
    if WINDOW > 0:
        last = tl.minimum(length, (block + 1) * BLOCK_N + WINDOW - 1)
    for member in range(heads_per_group):
        head = group * heads_per_group + member
        slope = 0.0
        if HAS_SLOPES:
            slope = tl.load(slope_ptr + head)
        line = (batch * groups * heads_per_group + head).to(tl.int64) * length
        for start in range(first, last, BLOCK_M):
            rows = start + tl.arange(0, BLOCK_M)
            row = rows[:, None].to(tl.int64)
            valid = rows[:, None] < length
            q = tl.load(
                q_ptr + row * q_s + batch * q_b + head * q_h + dims[None, :],
                mask=valid,
                other=0.0,
            )
            grad = tl.load(
                grad_ptr + row * o_s + batch * o_b + head * o_h + dims[None, :],
                mask=valid,
                other=0.0,
            )
            lse = tl.load(lse_ptr + line + rows, mask=rows < length, other=float("inf"))
            delta = tl.load(delta_ptr + line + rows, mask=rows < length, other=0.0)
            logits = _logits(
                q, k, rows, cols, documents, batch, slope, scale, length,
                WINDOW, HAS_SLOPES, HAS_DOCUMENTS, PRECISION,
            )  # fmt: skip
            p = tl.exp2(logits - lse[:, None])
            dv += tl.dot(tl.trans(p).to(grad.dtype), grad, input_precision=PRECISION)
            dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
            ds = p * (dp - delta[:, None])
            dk += tl.dot(tl.trans(ds).to(q.dtype), q, input_precision=PRECISION)
    dk *= scale * 0.6931471805599453
    target = column * d_s + batch * d_b + group * d_h + dims[None, :]
    tl.store(dk_ptr + target, dk.to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_ptr + target, dv.to(dv_ptr.dtype.element_ty), mask=inside)


def _blocks(pattern: AttentionPattern, query: torch.Tensor) -> dict[str, dict[str, int]]:
    """Block sizes and warps of the three kernels, measured on an H200 at d = 128 in bf16."""
    channels = query.shape[-1]
    if query.dtype == torch.float32 or channels > 128:
        small = {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4, "num_stages": 1}
        return {"forward": small, "query": small, "key_value": small}
    if pattern.window is not None:
        return {
            "forward": {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 4, "num_stages": 3},
            "query": {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 3},
            "key_value": {"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 8, "num_stages": 1},
        }
    return {
        "forward": {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 3},
        "query": {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 3},
        "key_value": {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2},
    }


class _Attention(torch.autograd.Function):
    """Forward and backward of `triton_attention`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        offset: torch.Tensor | None,
        documents: torch.Tensor | None,
        pattern: AttentionPattern,
    ) -> torch.Tensor:
        length, batch, heads, channels = query.shape
        query, key, value = (_dense_last(x) for x in (query, key, value))
        slopes = _slopes(pattern, query.device)
        out = torch.empty((length, batch, heads, channels), dtype=query.dtype, device=query.device)
        lse = torch.empty((batch * heads, length), dtype=torch.float32, device=query.device)
        blocks = _blocks(pattern, query)
        _forward_kernel[(triton.cdiv(length, blocks["forward"]["BLOCK_M"]), batch * heads)](
            query,
            key,
            value,
            offset,
            slopes,
            documents,
            out,
            lse,
            *query.stride()[:3],
            *key.stride()[:3],
            *value.stride()[:3],
            *out.stride()[:3],
            length,
            heads,
            heads // key.shape[2],
            pattern.scale * _LOG2_E,
            HAS_OFFSET=offset is not None,
            **_static(pattern, query, documents),
            **blocks["forward"],
        )
        ctx.save_for_backward(query, key, value, offset, documents, slopes, out, lse)
        ctx.pattern = pattern
        return out.view(length, batch, heads * channels)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, offset, documents, slopes, out, lse = ctx.saved_tensors
        pattern = ctx.pattern
        length, batch, heads, _ = query.shape
        groups = key.shape[2]
        grad = grads[0].contiguous().view(out.shape)
        dq = torch.empty_like(out)
        dk = torch.empty(key.shape, dtype=key.dtype, device=key.device)
        dv = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        delta = torch.empty_like(lse)
        strides = (
            *query.stride()[:3],
            *key.stride()[:3],
            *value.stride()[:3],
            *out.stride()[:3],
        )
        blocks = _blocks(pattern, query)
        static = _static(pattern, query, documents)
        scale = pattern.scale * _LOG2_E
        rows = triton.cdiv(length, blocks["query"]["BLOCK_M"])
        parts = torch.empty((batch, heads, rows), dtype=torch.float32, device=query.device)
        _query_gradient_kernel[(rows, batch * heads)](
            query,
            key,
            value,
            slopes,
            documents,
            out,
            grad,
            lse,
            delta,
            dq,
            offset,
            parts,
            *strides,
            length,
            heads,
            heads // groups,
            scale,
            HAS_OFFSET=offset is not None,
            **static,
            **blocks["query"],
        )
        _key_value_gradient_kernel[
            (triton.cdiv(length, blocks["key_value"]["BLOCK_N"]), batch * groups)
        ](
            query,
            key,
            value,
            slopes,
            documents,
            grad,
            lse,
            delta,
            dk,
            dv,
            *strides,
            *dk.stride()[:3],
            length,
            groups,
            heads // groups,
            scale,
            **static,
            **blocks["key_value"],
        )
        d_offset = None
        if offset is not None and ctx.needs_input_grad[3]:
            d_offset = parts.sum((0, 2)).to(offset.dtype)
        return dq, dk, dv, d_offset, None, None


def triton_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offset: torch.Tensor | None,
    document_ids: torch.Tensor | None,
    pattern: AttentionPattern,
) -> torch.Tensor:
    """Attention as `eager_attention` defines it: same arguments, shapes and result.

    fp32, fp16 and bf16; the head dimension is a power of two from 16 to 256.
    """
    documents = None if document_ids is None else document_ids.contiguous()
    out: torch.Tensor = _Attention.apply(query, key, value, offset, documents, pattern)
    return out


def _dense_last(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@functools.cache
def _slopes(pattern: AttentionPattern, device: torch.device) -> torch.Tensor | None:
    """The slopes for base-2 logits; kept, since a copy to the device would wait for it."""
    if pattern.slopes is None:
        return None
    return torch.tensor(pattern.slopes, dtype=torch.float32, device=device) * _LOG2_E


def _static(
    pattern: AttentionPattern, query: torch.Tensor, documents: torch.Tensor | None
) -> dict[str, Any]:
    return {
        "WINDOW": pattern.window or 0,
        "HAS_SLOPES": pattern.slopes is not None,
        "HAS_DOCUMENTS": documents is not None,
        # TF32 would lose half of fp32's digits.
        "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
        "D": query.shape[-1],
    }
