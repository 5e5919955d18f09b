"""Limits that cannot bind are named, and those that can are not."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch

from vpmoe.model.limits import limits_without_effect
from vpmoe.model.moe.groups import choose_in_groups, experts_that_score

BINDING: dict[str, Any] = {
    "num_layers": 8,
    "seq_length": 2048,
    "window_size": (127, 0),
    "window_attn_skip_freq": 4,
    "position_embedding_type": "grapem",
    "no_rope_freq": 4,
    "grape_a": True,
    "use_tpa": True,
    "num_experts": 256,
    "moe_layer_freq": [0] + [1] * 7,
    "moe_router_topk": 4,
    "moe_router_num_groups": 8,
    "moe_router_group_topk": 4,
    "moe_router_group_score_topk": 2,
    "moe_router_load_balancing_type": "seq_aux_loss",
    "moe_expert_capacity_factor": None,
}


def named(**changes: Any) -> list[str]:
    return limits_without_effect(argparse.Namespace(**{**BINDING, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"moe_router_group_score_topk": None, "moe_router_group_topk": 3},
        {"moe_router_group_score_topk": None, "moe_router_group_topk": 2},
        {"moe_router_num_groups": None, "moe_router_group_topk": None},
        {"moe_expert_capacity_factor": 63.9},
        {"moe_expert_capacity_factor": -1.0},
        {"window_size": (2046, 0)},
        {"window_size": None, "window_attn_skip_freq": None},
        {"grape_a": False, "window_attn_skip_freq": None},
        {"position_embedding_type": "none", "no_rope_freq": None},
        {"num_experts": None},
    ],
)
def test_what_limits_is_not_named(changes: dict[str, Any]) -> None:
    assert named(**changes) == []


@pytest.mark.parametrize(
    ("changes", "flag", "why"),
    [
        (
            {"moe_router_group_score_topk": None},
            "--moe-router-group-topk 4",
            "--moe-router-group-score-topk 2 is DeepSeek-V3's rule",
        ),
        ({"moe_router_group_score_topk": 1, "moe_router_topk": 3}, "--moe-router-group-topk", "3"),
        ({"moe_router_group_topk": 8}, "--moe-router-group-topk 8 of 8", "no group"),
        ({"moe_router_group_topk": None}, "--moe-router-num-groups 8", "without groups"),
        ({"moe_router_load_balancing_type": "sinkhorn"}, "--moe-router-num-groups", "sinkhorn"),
        (
            {"moe_router_topk": 256, "moe_router_num_groups": None},
            "--moe-router-topk 256",
            "all 256",
        ),
        ({"moe_expert_capacity_factor": 64.0}, "--moe-expert-capacity-factor 64", "dropped"),
        ({"window_size": (2047, 0)}, "--window-size 2048", "covers the sequence of 2048"),
        ({"window_size": (4095, 0)}, "--window-size 4096", "covers the sequence of 2048"),
        (
            {"window_attn_skip_freq": 1, "no_rope_freq": 1},
            "--window-size 128 and --use-tpa",
            "no local layer",
        ),
        ({"window_attn_skip_freq": [0] * 8, "use_tpa": False}, "--window-size 128:", "no local"),
        ({"window_attn_skip_freq": 9}, "--grape-a", "every layer is local"),
        ({"no_rope_freq": 9}, "--no-rope-freq", "all 8 layers rotate"),
        ({"no_rope_freq": [0] * 8}, "--no-rope-freq", "all 8 layers rotate"),
        ({"position_embedding_type": "none"}, "--no-rope-freq", "no layer rotates"),
    ],
)
def test_what_cannot_limit_is_named_once(changes: dict[str, Any], flag: str, why: str) -> None:
    (sentence,) = named(**changes)
    assert sentence.startswith(flag)
    assert why in sentence


def test_models_without_experts_have_no_limits_on_them() -> None:
    without = {"moe_router_group_topk": 8, "moe_layer_freq": [0] * 8}
    assert named(**without) == []
    assert len(named(**{**without, "moe_layer_freq": 2})) == 1


@pytest.mark.parametrize("topk", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("score", [None, 1, 2])
def test_groups_are_named_where_and_only_where_no_choice_changes(
    topk: int, score: int | None
) -> None:
    """All numbers of groups, on scores that make a difference easy to find."""
    experts, groups = 24, 6
    generator = torch.Generator().manual_seed(topk)
    scores = torch.rand(3000, experts, generator=generator) ** 3
    for group_topk in range(1, groups + 1):
        counted = experts_that_score(topk, group_topk, score)
        if counted < 1 or topk > group_topk * experts // groups:
            continue  # refused
        limited = choose_in_groups(scores, topk, groups, group_topk, counted)[1].sort().values
        unchanged = torch.equal(limited, scores.topk(topk).indices.sort().values)
        sentences = named(
            num_experts=experts,
            moe_router_topk=topk,
            moe_router_num_groups=groups,
            moe_router_group_topk=group_topk,
            moe_router_group_score_topk=score,
        )
        assert bool(sentences) == unchanged, f"{group_topk} groups"
