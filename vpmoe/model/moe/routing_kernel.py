"""Sigmoid routing in one Triton pass: top-k in groups, probabilities, sums of the balancing loss.

A program takes tokens of one sequence, so that the loss's sums over a sequence are sums over
programs, added up in a fixed order. Nothing waits for the device.
"""

# Triton kernels take pointers and constexprs, which have no Python types.
# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

# Tokens of a program, and elements of a tile of tokens x experts.
_TOKENS = 16
_TILE_ELEMENTS = 2048


@dataclass(frozen=True)
class RoutingRule:
    """How experts are chosen.

    Attributes:
        topk: experts of a token.
        groups: groups of experts; 1 without.
        group_topk: groups of a token; 1 without.
        group_score_topk: best experts of a group whose scores add up to the group's.
        scaling: factor of the probabilities.
    """

    topk: int
    groups: int
    group_topk: int
    group_score_topk: int
    scaling: float


@triton.jit
def _chosen(
    scores,
    experts,
    TOPK: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP_TOPK: tl.constexpr,
    GROUP_SCORE: tl.constexpr,
    TILE: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    """Whether each expert is among its token's best, ties to the lower number: int32 [TILE, E].

    With groups, first the groups of the highest sums of their best GROUP_SCORE.
    """
    # NaN must still choose TOPK different experts.
    scores = tl.where(scores == scores, scores, -1.0e30)
    if GROUPS > 1:
        SIZE: tl.constexpr = EXPERTS // GROUPS
        grouped = tl.reshape(scores, [TILE, GROUPS, SIZE])
        members = tl.arange(0, SIZE)
        sums = tl.zeros([TILE, GROUPS], tl.float32)
        for _ in tl.static_range(GROUP_SCORE):
            sums += tl.max(grouped, axis=2)
            best = tl.argmax(grouped, axis=2)
            grouped = tl.where(members[None, None, :] == best[:, :, None], float("-inf"), grouped)
        numbers = tl.arange(0, GROUPS)
        open_groups = tl.zeros([TILE, GROUPS], tl.int32)
        for _ in tl.static_range(GROUP_TOPK):
            hot = numbers[None, :] == tl.argmax(sums, axis=1)[:, None]
            open_groups = tl.where(hot, 1, open_groups)
            sums = tl.where(hot, float("-inf"), sums)
        spread = tl.broadcast_to(open_groups[:, :, None], [TILE, GROUPS, SIZE])
        scores = tl.where(tl.reshape(spread, [TILE, EXPERTS]) > 0, scores, float("-inf"))
    chosen = tl.zeros([TILE, EXPERTS], tl.int32)
    for _ in tl.static_range(TOPK):
        hot = experts[None, :] == tl.argmax(scores, axis=1)[:, None]
        chosen = tl.where(hot, 1, chosen)
        scores = tl.where(hot, float("-inf"), scores)
    return chosen


@triton.jit
def _routing_kernel(
    logits_ptr,
    bias_ptr,
    probs_ptr,
    map_ptr,
    load_ptr,
    score_sums_ptr,
    count_sums_ptr,
    length,
    batch,
    scaling,
    HAS_BIAS: tl.constexpr,
    BALANCED: tl.constexpr,
    TOPK: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP_TOPK: tl.constexpr,
    GROUP_SCORE: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    """TOKENS tokens of sequence program_id(1); token s of sequence b is row s * batch + b."""
    part, sequence = tl.program_id(0), tl.program_id(1)
    experts = tl.arange(0, EXPERTS)
    bias = tl.zeros([EXPERTS], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + experts)
    load = tl.zeros([EXPERTS], tl.int32)
    score_sums = tl.zeros([EXPERTS], tl.float32)
    count_sums = tl.zeros([EXPERTS], tl.int32)
    for start in range(0, TOKENS, TILE):
        tokens = part * TOKENS + start + tl.arange(0, TILE)
        inside = tokens[:, None] < length
        place = (tokens * batch + sequence).to(tl.int64)[:, None] * EXPERTS + experts[None, :]
        scores = tl.sigmoid(tl.load(logits_ptr + place, mask=inside, other=0.0))
        chosen = _chosen(
            scores + bias[None, :], experts, TOPK, GROUPS, GROUP_TOPK, GROUP_SCORE, TILE, EXPERTS
        )
        probs = tl.where(chosen > 0, scores, 0.0)
        if TOPK > 1:
            probs = probs / (tl.sum(probs, axis=1) + 1e-20)[:, None]
        tl.store(probs_ptr + place, probs * scaling, mask=inside)
        tl.store(map_ptr + place, chosen.to(tl.uint8), mask=inside)
        load += tl.sum(tl.where(inside, chosen, 0), axis=0)
        if BALANCED:
            normalised = scores / (tl.sum(scores, axis=1) + 1e-20)[:, None]
            score_sums += tl.sum(tl.where(inside, normalised, 0.0), axis=0)
            unbiased = _chosen(scores, experts, TOPK, 1, 1, 1, TILE, EXPERTS)
            count_sums += tl.sum(tl.where(inside, unbiased, 0), axis=0)
    target = (part * batch + sequence) * EXPERTS + experts
    tl.store(load_ptr + target, load)
    if BALANCED:
        tl.store(score_sums_ptr + target, score_sums)
        tl.store(count_sums_ptr + target, count_sums)


@triton.jit
def _routing_gradient_kernel(
    logits_ptr,
    map_ptr,
    d_probs_ptr,
    d_sums_ptr,
    d_logits_ptr,
    tokens_count,
    batch,
    scaling,
    BALANCED: tl.constexpr,
    TOPK: tl.constexpr,
    TILE: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    """The logits' gradient from the probabilities' and from the sums' of normalised scores."""
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    experts = tl.arange(0, EXPERTS)
    inside = rows[:, None] < tokens_count
    place = rows[:, None].to(tl.int64) * EXPERTS + experts[None, :]
    scores = tl.sigmoid(tl.load(logits_ptr + place, mask=inside, other=0.0))
    chosen = tl.load(map_ptr + place, mask=inside, other=0) > 0
    d_scores = tl.load(d_probs_ptr + place, mask=inside & chosen, other=0.0) * scaling
    if TOPK > 1:
        total = tl.sum(tl.where(chosen, scores, 0.0), axis=1) + 1e-20
        mean = tl.sum(d_scores * scores, axis=1) / total
        d_scores = tl.where(chosen, (d_scores - mean[:, None]) / total[:, None], 0.0)
    if BALANCED:
        sequences = rows % batch
        d_sums = tl.load(d_sums_ptr + sequences[:, None] * EXPERTS + experts[None, :])
        total = tl.sum(scores, axis=1) + 1e-20
        mean = tl.sum(d_sums * scores, axis=1) / total
        d_scores += (d_sums - mean[:, None]) / total[:, None]
    tl.store(d_logits_ptr + place, d_scores * scores * (1.0 - scores), mask=inside)


class _Routing(torch.autograd.Function):
    """Forward and backward of `route`."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        bias: torch.Tensor | None,
        rule: RoutingRule,
        balanced: bool,
    ) -> tuple[torch.Tensor, ...]:
        length, batch, experts = logits.shape
        logits = logits.contiguous()
        device = logits.device
        probs = torch.empty((length * batch, experts), dtype=torch.float32, device=device)
        routing_map = torch.empty(probs.shape, dtype=torch.uint8, device=device)
        parts = triton.cdiv(length, _TOKENS)
        partial = (parts, batch, experts)
        load = torch.empty(partial, dtype=torch.int32, device=device)
        scores = counts = None
        if balanced:
            scores = torch.empty(partial, dtype=torch.float32, device=device)
            counts = torch.empty(partial, dtype=torch.int32, device=device)
        _routing_kernel[(parts, batch)](
            logits,
            bias,
            probs,
            routing_map,
            load,
            scores,
            counts,
            length,
            batch,
            rule.scaling,
            HAS_BIAS=bias is not None,
            BALANCED=balanced,
            TOPK=rule.topk,
            GROUPS=rule.groups,
            GROUP_TOPK=rule.group_topk,
            GROUP_SCORE=rule.group_score_topk,
            TOKENS=_TOKENS,
            TILE=_tile(experts),
            EXPERTS=experts,
        )
        ctx.save_for_backward(logits, routing_map)
        ctx.set_materialize_grads(False)
        ctx.rule = rule
        choices, load = routing_map.view(torch.bool), load.sum((0, 1))
        if scores is None or counts is None:
            ctx.mark_non_differentiable(choices, load)
            return probs, choices, load
        score_sums, count_sums = scores.sum(0), counts.sum(0).float()
        ctx.mark_non_differentiable(choices, load, count_sums)
        return probs, choices, load, score_sums, count_sums

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, routing_map = ctx.saved_tensors
        length, batch, experts = logits.shape
        d_probs = torch.zeros_like(logits) if grads[0] is None else grads[0].contiguous()
        balanced = len(grads) > 3 and grads[3] is not None
        d_logits = torch.empty_like(logits)
        tile = _tile(experts)
        _routing_gradient_kernel[(triton.cdiv(length * batch, tile),)](
            logits,
            routing_map,
            d_probs,
            grads[3].contiguous() if balanced else None,
            d_logits,
            length * batch,
            batch,
            ctx.rule.scaling,
            BALANCED=balanced,
            TOPK=ctx.rule.topk,
            TILE=tile,
            EXPERTS=experts,
        )
        return d_logits, None, None, None


def _tile(experts: int) -> int:
    """Tokens of a tile; a power of two that divides `_TOKENS`."""
    return max(1, min(_TOKENS, _TILE_ELEMENTS // experts))


def route(
    logits: torch.Tensor, bias: torch.Tensor | None, rule: RoutingRule, balanced: bool
) -> tuple[torch.Tensor, ...]:
    """Chooses experts by sigmoid scores.

    The scores of the chosen experts, chosen by score plus bias, are normalised to a sum of 1 (but
    for a single one) and scaled.

    Args:
        logits: fp32 [s, b, experts]; a power of two of experts.
        bias: fp32 [experts], added for the choice alone; None without.
        rule: how many are chosen.
        balanced: also sum up what a sequence-level balancing loss needs.

    Returns:
        Probabilities fp32 [s * b, experts], zero for experts not chosen; the choices, bool, of that
        shape; tokens of each expert, int64 [experts]. If balanced also the sums over a sequence's
        tokens of the scores normalised over all experts, fp32 [b, experts], and the numbers of
        tokens that have an expert among the best without bias and groups, fp32 [b, experts].
        Probabilities and score sums are differentiable.
    """
    result: tuple[torch.Tensor, ...] = _Routing.apply(logits, bias, rule, balanced)
    return result
