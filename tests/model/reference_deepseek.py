"""DeepSeek-V3's choice of experts, written from its report, token by token in fp64.

Report (arXiv 2412.19437, section 2.1.2): affinities are s = sigmoid(u . e); experts are chosen by
s + b, and weighed by the chosen s, divided by their sum. A token goes to at most M nodes, those
with the largest sums of their highest K_r / M affinities, which is 8 / 4 = 2 there; the published
inference code has the number 2. Experts of other groups are out of the choice.
"""

from __future__ import annotations

import torch


def deepseek_routing(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    topk: int,
    groups: int,
    group_topk: int,
    scaling: float,
    group_score_topk: int = 2,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights fp64, through which gradients flow, and choices bool, both [tokens, experts].

    Args:
        logits: [tokens, experts], experts of a group side by side.
        bias: [experts], for the choice alone; None without.
        topk: experts of a token.
        groups: number of groups.
        group_topk: groups of a token.
        scaling: factor of the weights.
        group_score_topk: affinities that a group's score adds up.
    """
    tokens, experts = logits.shape
    size = experts // groups
    affinities = torch.sigmoid(logits.double())
    choices = torch.zeros(tokens, experts, dtype=torch.bool)
    for token in range(tokens):
        biased = affinities[token].detach()
        if bias is not None:
            biased = biased + bias.double()
        chosen_by = biased.tolist()
        members = [list(range(g * size, (g + 1) * size)) for g in range(groups)]
        score = [
            sum(sorted((chosen_by[e] for e in m), reverse=True)[:group_score_topk]) for m in members
        ]
        open_groups = sorted(range(groups), key=lambda g: (-score[g], g))[:group_topk]
        candidates = [e for g in open_groups for e in members[g]]
        best = sorted(candidates, key=lambda e: (-chosen_by[e], e))[:topk]
        choices[token, best] = True
    chosen = torch.where(choices, affinities, 0.0)
    return scaling * chosen / chosen.sum(1, keepdim=True), choices
