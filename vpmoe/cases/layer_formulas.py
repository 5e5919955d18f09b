"""The layers of vpMoE in fp64, written down from their definitions; nothing of the model is used.

Weights are named as the model names them, below the layer. Everything is for one sequence.

- RMSNorm: x / sqrt(mean(x^2) + eps) * w (Zhang and Sennrich, 2019).
- Tensor product attention: q_h = 1/R sum_r a_q[h, r] b_q[r], all factors linear in x
  (Zhang et al., 2025).
- GRAPE-M: the planes (i, i + d/2) turn by position * exp(phi_i / s).
- ALiBi: -m_h (i - j), m_h = 2^(-8h/H) for H a power of two (Press et al., 2022).
- Softmax with an offset: softmax([logits, b_h]), whose last column has no value.
- Experts: sigmoid scores, the best K of the best groups by score and bias, weights
  2.5 s / sum(s) for a scaling of 2.5; relu^2. Their balancing loss is E / K times the sum over
  the experts of (share of the tokens that have it among their K best scores, whatever the bias and
  the groups) x (mean of s / sum(s) over all experts) (DeepSeek-AI, 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """What a layer's formula must know besides its weights.

    Attributes:
        heads: H.
        groups: key and value heads.
        channels: of a head.
        eps: of RMSNorm.
        q_rank: rank of TPA's queries.
        rank: rank of TPA's keys and values.
        window: tokens that a query of a local layer sees, itself included.
        frequency_scale: s of GRAPE-M.
        topk: experts of a token.
        expert_groups: groups of experts.
        group_topk: groups of a token.
        scaling: of the experts' weights.
    """

    heads: int
    groups: int
    channels: int
    eps: float
    q_rank: int
    rank: int
    window: int
    frequency_scale: float
    topk: int
    expert_groups: int
    group_topk: int
    scaling: float


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension."""
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight


def local_attention(
    x: Tensor, weights: Weights, phi: Tensor, documents: Tensor, shape: Shape
) -> Tensor:
    """TPA with QK-norm, GRAPE-M and a window.

    Args:
        x: [s, hidden], normalised.
        weights: of `self_attention`.
        phi: [channels / 2].
        documents: [s], which count up; positions begin at 0 in each.
        shape: see `Shape`.

    Returns:
        [s, hidden].
    """

    def product(name: str, count: int, rank: int) -> Tensor:
        a = (x @ weights[f"linear_qkv.a_{name}"].T).view(-1, count, rank)
        b = (x @ weights[f"linear_qkv.b_{name}"].T).view(-1, rank, shape.channels)
        return torch.einsum("shr,src->shc", a, b) / rank

    q = product("q", shape.heads, shape.q_rank)
    k, v = (product(name, shape.groups, shape.rank) for name in ("k", "v"))
    q = norm(q, weights["q_layernorm.weight"], shape.eps)
    k = norm(k, weights["k_layernorm.weight"], shape.eps)
    first = torch.searchsorted(documents, documents)  # of the document that a token is in
    position = torch.arange(len(x)) - first
    angle = position.double()[:, None] * (phi / shape.frequency_scale).exp()
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    q, k = (_turned(values, turn) for values in (q, k))
    distance = torch.arange(len(x))[:, None] - torch.arange(len(x))
    seen = (distance >= 0) & (distance < shape.window)
    return _attended(q, k, v, weights, seen & _same(documents), None)


def global_attention(x: Tensor, weights: Weights, documents: Tensor, shape: Shape) -> Tensor:
    """Grouped queries with QK-norm and ALiBi, without rotation; arguments as above."""
    size = shape.heads // shape.groups
    rows = (x @ weights["linear_qkv.weight"].T).view(-1, shape.groups, size + 2, shape.channels)
    q = rows[:, :, :size].flatten(1, 2)
    k, v = rows[:, :, size], rows[:, :, size + 1]
    q = norm(q, weights["q_layernorm.weight"], shape.eps)
    k = norm(k, weights["k_layernorm.weight"], shape.eps)
    distance = torch.arange(len(x))[:, None] - torch.arange(len(x))
    slopes = 2.0 ** (-8.0 * torch.arange(1, shape.heads + 1).double() / shape.heads)
    bias = -slopes[:, None, None] * distance
    return _attended(q, k, v, weights, (distance >= 0) & _same(documents), bias)


def feed_forward(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """W2 relu(W1 x)^2."""
    return (x @ first.T).clamp_min(0).square() @ second.T


def choice(scores: Tensor, bias: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """The experts of each token, and how clear the choice is.

    Args:
        scores: [s, experts].
        bias: [experts], of the choice alone.
        shape: see `Shape`.

    Returns:
        bool [s, experts]; [s], the smallest gap between what was chosen and what was not, of groups
        and of experts.
    """
    wanted = scores + bias
    grouped = wanted.unflatten(-1, (shape.expert_groups, -1))
    counted = max(1, shape.topk // shape.group_topk)
    best = grouped.sort(dim=-1, descending=True).values[..., :counted].sum(dim=-1)
    groups, group_gap = _best(best, shape.group_topk)
    open_ = groups.repeat_interleave(grouped.shape[-1], dim=-1)
    experts, gap = _best(wanted.masked_fill(~open_, -math.inf), shape.topk)
    return experts, torch.minimum(gap, group_gap)


def experts(x: Tensor, weights: Weights, chosen: Tensor, shape: Shape) -> Tensor:
    """The chosen experts' outputs, weighed, and the shared expert's.

    Args:
        x: [s, hidden], normalised.
        weights: of `mlp`.
        chosen: bool [s, experts].
        shape: see `Shape`.

    Returns:
        [s, hidden].
    """
    scores = (x @ weights["router.weight"].T).sigmoid() * chosen
    share = shape.scaling * scores / scores.sum(dim=-1, keepdim=True)
    output = feed_forward(
        x,
        weights["shared_experts.linear_fc1.weight"],
        weights["shared_experts.linear_fc2.weight"],
    )
    for expert in range(chosen.shape[1]):
        prefix = f"experts.local_experts.{expert}."
        of_expert = feed_forward(
            x, weights[f"{prefix}linear_fc1.weight"], weights[f"{prefix}linear_fc2.weight"]
        )
        output = output + share[:, expert, None] * of_expert
    return output


def balancing_loss(scores: Tensor, topk: int) -> Tensor:
    """The balancing loss of a sequence, of its scores [s, experts]."""
    shares = _best(scores.detach(), topk)[0].double().mean(dim=0)
    means = (scores / scores.sum(dim=-1, keepdim=True)).mean(dim=0)
    return scores.shape[1] / topk * (shares * means).sum()


def losses(x: Tensor, output: Tensor, labels: Tensor) -> Tensor:
    """Cross entropies [s] of x [s, hidden], normalised, under the output's weight."""
    logits = x @ output.T
    return logits.logsumexp(dim=-1) - logits.gather(1, labels[:, None]).squeeze(1)


def _attended(
    q: Tensor, k: Tensor, v: Tensor, weights: Weights, seen: Tensor, bias: Tensor | None
) -> Tensor:
    size = q.shape[1] // k.shape[1]
    contexts = []
    for head in range(q.shape[1]):
        logits = q[:, head] @ k[:, head // size].T / math.sqrt(q.shape[-1])
        if bias is not None:
            logits = logits + bias[head]
        logits = logits.masked_fill(~seen, -math.inf)
        offset = weights["core_attention.softmax_offset"][head]
        column = offset.expand(len(logits), 1)
        shares = torch.cat((logits, column), dim=1).softmax(dim=1)[:, :-1]
        contexts.append(shares @ v[:, head // size])
    return functional.linear(torch.cat(contexts, dim=1), weights["linear_proj.weight"])


def _turned(values: Tensor, turn: Tensor) -> Tensor:
    """Planes (i, i + d/2) as complex numbers, times a complex number of size 1."""
    planes = torch.complex(*values.chunk(2, dim=-1)) * turn
    return torch.cat((planes.real, planes.imag), dim=-1)


def _same(documents: Tensor) -> Tensor:
    return documents[:, None] == documents


def _best(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest `count` of each row, and the gap to the next one, inf where all are chosen."""
    ordered = values.sort(dim=-1, descending=True).values
    chosen = values >= ordered[:, count - 1, None]
    if count == values.shape[-1]:
        return chosen, torch.full_like(ordered[:, 0], math.inf)
    return chosen, ordered[:, count - 1] - ordered[:, count]
