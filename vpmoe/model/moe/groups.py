"""The choice of experts within groups, where a group's score is a number of its best experts'.

Megatron 0.19.2 scores a group by its best `topk // group_topk` experts. With one expert a group
(4 // 4) and as many groups as experts, the best experts always lie in the best groups and the limit
changes nothing. DeepSeek-V3 scores a group by its best two.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from vpmoe.megatron.moe import ChoosingRouter
from vpmoe.model.config import VpmoeConfig


def experts_that_score(topk: int, group_topk: int, group_score_topk: int | None) -> int:
    """Says how many of a group's best experts its score is the sum of.

    Args:
        topk: experts of a token.
        group_topk: groups of a token.
        group_score_topk: the number that was asked for; None is Megatron's.

    Returns:
        The number of experts.
    """
    return topk // group_topk if group_score_topk is None else group_score_topk


def choose_in_groups(
    scores: torch.Tensor, topk: int, groups: int, group_topk: int, group_score_topk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best experts of each token's best groups.

    Args:
        scores: [tokens, experts], a group's experts side by side.
        topk: experts of a token.
        groups: number of groups, which divides the experts.
        group_topk: groups of a token.
        group_score_topk: a group scores the sum of this many of its best experts.

    Returns:
        The chosen experts' scores, through which gradients flow, and their numbers, int64; both
        [tokens, topk].
    """
    grouped = scores.view(len(scores), groups, -1)
    group_scores = grouped.topk(group_score_topk, dim=-1).values.sum(dim=-1)
    best = group_scores.topk(group_topk, dim=-1, sorted=False).indices
    closed = torch.ones_like(group_scores, dtype=torch.bool).scatter_(1, best, False)
    allowed = grouped.masked_fill(closed[:, :, None], float("-inf")).flatten(1)
    chosen = allowed.topk(topk, dim=-1)
    return chosen.values, chosen.indices


class GroupScoreRouter(ChoosingRouter):
    """`TopKRouter` under `--moe-router-group-score-topk`; everything else is Megatron's.

    Args:
        config: vpMoE's configuration; `moe_router_group_score_topk` is set.
        pg_collection: process groups.
        is_mtp_layer: of Megatron's interface.

    Raises:
        ValueError: Megatron would choose experts without asking, see
            `group_score_unsupported_reason`.
    """

    def __init__(
        self,
        config: VpmoeConfig,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
    ) -> None:
        refusal = group_score_unsupported_reason(config)
        if refusal is not None:
            raise ValueError(f"--moe-router-group-score-topk: {refusal}")
        super().__init__(config, pg_collection, is_mtp_layer)

    def choose(
        self, scores: torch.Tensor, topk: int, groups: int, group_topk: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `choose_in_groups`."""
        score_topk = self.config.moe_router_group_score_topk
        return choose_in_groups(scores, topk, groups, group_topk, score_topk)


def group_score_unsupported_reason(config: Any) -> str | None:
    """Says why Megatron's router would not ask how groups are scored.

    Args:
        config: a `VpmoeConfig`, or Megatron's arguments, which have the same names.

    Returns:
        The reason, or None when it does ask.
    """
    kinds = config.moe_router_load_balancing_type
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    checks = {
        "needs --moe-router-num-groups and --moe-router-group-topk": not (
            config.moe_router_num_groups and config.moe_router_group_topk
        ),
        "--moe-router-fusion is Transformer Engine's router, which scores groups in Megatron's "
        "way alone; leave it out": config.moe_router_fusion,
        "--moe-enable-routing-replay takes the choices of another run; leave one of them out": (
            config.moe_enable_routing_replay
        ),
        "--moe-router-load-balancing-type sinkhorn chooses without groups; use another": (
            "sinkhorn" in kinds
        ),
    }
    return next((reason for reason, refused in checks.items() if refused), None)
