"""Group-limited routing: DeepSeek-V3's rule, Megatron's, and where a limit limits nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference_deepseek import deepseek_routing

EXPERTS = 32
SIX_B = {
    "num_moe_experts": EXPERTS,
    "moe_router_topk": 4,
    "moe_router_num_groups": 8,
    "moe_router_group_topk": 4,
}


def router_of(model: Any) -> Any:
    return model.decoder.layers[1].mlp.router


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("topk", "groups", "group_topk", "score"),
    [(4, 8, 4, 2), (4, 4, 2, 2), (2, 8, 1, 2), (3, 8, 3, 4), (4, 8, 4, 1), (2, 4, 3, 2)],
)
def test_the_router_chooses_as_the_published_rule(
    small_model: Callable[..., Any],
    topk: int,
    groups: int,
    group_topk: int,
    score: int,
    biased: bool,
) -> None:
    """Choices exactly, weights and gradients to fp32's rounding."""
    router = router_of(
        small_model(
            num_moe_experts=EXPERTS,
            moe_router_topk=topk,
            moe_router_num_groups=groups,
            moe_router_group_topk=group_topk,
            moe_router_group_score_topk=score,
            moe_router_enable_expert_bias=biased,
        )
    )
    generator = torch.Generator().manual_seed(topk + groups)
    logits = torch.randn(60, 2, EXPERTS, generator=generator).requires_grad_()
    bias = None
    if biased:
        bias = torch.randn(EXPERTS, generator=generator) * 0.3
        router.expert_bias.copy_(bias)
    router.eval()  # no balancing loss
    weights, choices = router.routing(logits)
    leaf = logits.detach().view(-1, EXPERTS).requires_grad_()
    expected, expected_choices = deepseek_routing(
        leaf, bias, topk, groups, group_topk, 2.5, group_score_topk=score
    )
    assert torch.equal(choices, expected_choices)
    torch.testing.assert_close(weights.double(), expected, atol=0, rtol=1e-6)
    upstream = torch.randn(weights.shape, generator=generator)
    (found,) = torch.autograd.grad((weights * upstream).sum(), logits)
    (wanted,) = torch.autograd.grad((expected * upstream).sum(), leaf)
    torch.testing.assert_close(found.view(-1, EXPERTS), wanted, atol=1e-7, rtol=1e-5)


def test_one_expert_a_group_is_no_limit_and_two_are() -> None:
    """vpmoe-6b as it starts, logits N(0, 0.64): Megatron's rule moves no choice, the other many."""
    from vpmoe.model.moe.groups import choose_in_groups

    deviation = 0.02 * 1024**0.5
    logits = torch.randn(8192, 256, generator=torch.Generator().manual_seed(0)) * deviation
    scores = torch.sigmoid(logits)
    free = scores.topk(4).indices.sort().values
    by_best, by_two = (choose_in_groups(scores, 4, 8, 4, n)[1].sort().values for n in (1, 2))
    assert torch.equal(by_best, free)
    moved = (by_two != free).any(1).float().mean()
    assert 0.29 < moved < 0.34


def test_megatrons_rule_as_a_number_is_megatrons_router(small_model: Callable[..., Any]) -> None:
    logits = torch.randn(40, 1, EXPERTS, generator=torch.Generator().manual_seed(3))
    plain, numbered = (
        router_of(small_model(**SIX_B, moe_router_group_score_topk=n)).eval() for n in (None, 1)
    )
    assert type(plain) is not type(numbered)
    for found, expected in zip(numbered.routing(logits), plain.routing(logits), strict=True):
        assert torch.equal(found, expected)


def test_a_model_trains_with_the_rule(small_model: Callable[..., Any]) -> None:
    """Forward and backward, with the balancing loss; the router's choice reaches the loss."""
    tokens = torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(0))
    losses = []
    for score in (None, 2):
        model = small_model(**SIX_B, moe_router_group_score_topk=score)
        loss = model(tokens, torch.arange(24).expand(2, -1), None, labels=tokens).mean()
        loss.backward()
        assert router_of(model).weight.grad.abs().sum() > 0
        losses.append(loss.item())
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe_router_num_groups": None, "moe_router_group_topk": None}, "--moe-router-num-groups"),
        ({"moe_router_fusion": True}, "--moe-router-fusion"),
        ({"moe_enable_routing_replay": True}, "--moe-enable-routing-replay"),
        ({"moe_router_load_balancing_type": "sinkhorn"}, "sinkhorn"),
    ],
)
def test_routers_that_cannot_are_refused_by_name(
    small_config: Callable[..., Any], changes: dict[str, Any], message: str
) -> None:
    from vpmoe.model.moe.groups import group_score_unsupported_reason

    config = small_config(**SIX_B, moe_router_group_score_topk=2)
    assert group_score_unsupported_reason(config) is None
    for name, value in changes.items():
        setattr(config, name, value)
    assert message in str(group_score_unsupported_reason(config))


def test_the_router_itself_refuses(small_model: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="--moe-router-group-score-topk: needs --moe-router-num"):
        small_model(
            moe_router_num_groups=None, moe_router_group_topk=None, moe_router_group_score_topk=2
        )
