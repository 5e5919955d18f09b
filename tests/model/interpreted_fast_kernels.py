"""Compares the fused kernels of routing, experts, TPA and loss, interpreted on the CPU, with torch.

Run with TRITON_INTERPRET=1 before anything imports Triton. Prints one JSON object: the largest
relative errors, which `test_fast_kernels.py` holds to bounds.
"""

from __future__ import annotations

import json
from typing import Any

import interpreted_kernel  # noqa: F401 repairs the interpreter
import torch
from megatron.core.transformer.moe.moe_utils import (
    compute_routing_scores_for_aux_loss,
    topk_routing_with_score_function,
)
from reference_deepseek import deepseek_routing
from torch.nn import functional

from vpmoe.model import cross_entropy_kernel
from vpmoe.model.grape import rotate
from vpmoe.model.moe import permutation_kernel, routing_kernel
from vpmoe.model.moe.permutation_kernel import (
    permute,
    plan_permutation,
    unpermute,
    weighted_squared_relu,
)
from vpmoe.model.moe.routing_kernel import RoutingRule, route
from vpmoe.model.tpa_kernel import TensorProductShape, compose_norm_rotate


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error in norm; infinite where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def gradients(outputs: list[torch.Tensor], leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of a sum of the outputs with fixed random weights."""
    generator = torch.Generator().manual_seed(5)
    total = sum(
        (out.double() * torch.randn(out.shape, generator=generator).double()).sum()
        for out in outputs
    )
    return list(torch.autograd.grad(total, leaves))  # type: ignore[arg-type]


def routing(rule: RoutingRule, experts: int, biased: bool) -> dict[str, float]:
    """Against Megatron's own functions, or DeepSeek-V3's rule where that is another."""
    length, batch = 37, 3
    logits = torch.randn(length, batch, experts).requires_grad_()
    bias = torch.randn(experts) * 0.3 if biased else None
    probs, choices, load, scores, counts = route(logits, bias, rule, True)
    flat = logits.view(-1, experts)
    expected_probs, expected_map = reference_routing(flat, bias, rule)
    aux_map, aux_scores = compute_routing_scores_for_aux_loss(flat, rule.topk, "sigmoid")
    sums = aux_scores.view(length, batch, experts).sum(0)
    plain, *_ = route(logits, bias, rule, False)
    found = gradients([probs, scores], [logits])[0]
    expected = gradients([expected_probs, sums], [logits])[0]
    return {
        "probs": error(probs, expected_probs),
        "unbalanced": error(plain, expected_probs),
        "choices": float((choices != expected_map).sum()),
        "load": float((load != expected_map.sum(0)).sum()),
        "score_sums": error(scores, sums),
        "count_sums": float((counts != aux_map.view(length, batch, experts).sum(0)).sum()),
        "gradient": error(found, expected),
        "gradient_alone": error(
            gradients([plain], [logits])[0],
            gradients([reference_routing(flat, bias, rule)[0]], [logits])[0],
        ),
    }


def reference_routing(
    flat: torch.Tensor, bias: torch.Tensor | None, rule: RoutingRule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and choices."""
    if rule.group_score_topk != rule.topk // rule.group_topk:
        return deepseek_routing(
            flat, bias, rule.topk, rule.groups, rule.group_topk, rule.scaling, rule.group_score_topk
        )
    probs, choices = topk_routing_with_score_function(
        flat,
        rule.topk,
        num_groups=rule.groups,
        group_topk=rule.group_topk if rule.groups > 1 else None,
        scaling_factor=rule.scaling,
        score_function="sigmoid",
        expert_bias=bias,
    )
    return probs, choices


def routing_of_nan() -> float:
    """Tokens of NaN that do not get topk different experts."""
    logits = torch.full((5, 1, 8), torch.nan)
    _, choices, *_ = route(logits, torch.zeros(8), RoutingRule(2, 4, 2, 1, 1.0), False)
    return float((choices.sum(1) != 2).sum())


def permutation(n: int, experts: int, topk: int, width: int) -> dict[str, float]:
    """Against a stable sort by expert, with experts that get no token."""
    scores = torch.randn(n, experts)
    scores[:, experts // 2] = -100.0
    routing_map = torch.zeros(n, experts, dtype=torch.bool).scatter(
        1, scores.topk(topk).indices, True
    )
    probs = (torch.rand(n, experts) * routing_map).requires_grad_()
    tokens = torch.randn(n, width).requires_grad_()
    plan, permuted = plan_permutation(probs, routing_map, topk)
    rows = permute(tokens, plan.positions)
    activated = weighted_squared_relu(rows, permuted)
    result = unpermute(activated, plan.positions)

    expert, token = routing_map.t().nonzero(as_tuple=True)
    expected_rows = tokens[token]
    expected_probs = probs[token, expert]
    expected_activated = functional.relu(expected_rows).square() * expected_probs[:, None]
    expected = torch.zeros(n, width).index_add(0, token, expected_activated)
    found_gradients = gradients([result], [tokens, probs])
    expected_gradients = gradients([expected], [tokens, probs])
    return {
        "rows": error(rows, expected_rows),
        "probs": error(permuted, expected_probs),
        "activated": error(activated, expected_activated),
        "result": error(result, expected),
        "counts": float((plan.tokens_per_expert != routing_map.sum(0)).sum()),
        "d_tokens": error(found_gradients[0], expected_gradients[0]),
        # Probabilities of experts that were not chosen have no gradient here.
        "d_probs": error(found_gradients[1], expected_gradients[1]),
    }


def composed(
    factors: torch.Tensor, weights: list[torch.Tensor], rotation: torch.Tensor, s: Any
) -> list[torch.Tensor]:
    """The unfused definition."""
    sizes = [s.heads * s.q_rank, *[s.groups * s.rank] * 2, s.q_rank * s.channels]
    a_q, a_k, a_v, b_q, b_k, b_v = factors.split([*sizes, *[s.rank * s.channels] * 2], dim=-1)
    q, k, v = (
        a.unflatten(-1, (heads, rank)) @ b.unflatten(-1, (rank, s.channels)) / rank
        for a, b, heads, rank in (
            (a_q, b_q, s.heads, s.q_rank),
            (a_k, b_k, s.groups, s.rank),
            (a_v, b_v, s.groups, s.rank),
        )
    )
    q, k = (
        rotate(functional.rms_norm(x, (s.channels,), w, s.epsilon), rotation)
        for x, w in zip((q, k), weights, strict=True)
    )
    return [q, k, v]


def tensor_products(shape: TensorProductShape) -> dict[str, float]:
    """Against the unfused definition in fp64."""
    length, batch = 19, 2
    leaves = [
        torch.randn(length, batch, shape.width),
        torch.randn(shape.channels),
        torch.randn(shape.channels),
        torch.randn(2, length, batch, 1, shape.channels // 2),
    ]
    single = [leaf.clone().requires_grad_() for leaf in leaves]
    double = [leaf.double().requires_grad_() for leaf in leaves]
    found = list(compose_norm_rotate(*single, shape))
    expected = composed(double[0], double[1:3], double[3], shape)
    names = ("query", "key", "value")
    errors = {n: error(f, e) for n, f, e in zip(names, found, expected, strict=True)}
    for name, f, e in zip(
        ("d_factors", "d_q_weight", "d_k_weight", "d_rotation"),
        gradients(found, single),
        gradients(expected, double),
        strict=True,
    ):
        errors[name] = error(f, e)
    return errors


def loss_rows() -> dict[str, float]:
    """Against fp64, with labels before, in and behind this rank's columns."""
    cross_entropy_kernel._BLOCK = 64
    vocab, first = 150, 100
    logits = torch.randn(6, vocab) * 20
    labels = torch.tensor([0, 99, 100, 170, 249, 250])
    high, total, target = cross_entropy_kernel.row_statistics(logits, labels, first)
    column = labels - first
    own = (column >= 0) & (column < vocab)
    expected_target = torch.where(own, logits[torch.arange(6), column.clamp(0, vocab - 1)], 0.0)
    normaliser = torch.logsumexp(logits.double(), 1)
    upstream = torch.randn(6)
    expected = torch.exp(logits.double() - normaliser[:, None])
    expected[torch.arange(6)[own], column[own]] -= 1
    expected *= upstream[:, None]
    found = logits.clone()
    cross_entropy_kernel.differentiate_rows_(found, labels, normaliser.float(), upstream, first)
    factor = torch.tensor([0.37])
    return {
        "scaled": error(cross_entropy_kernel.scaled(found, factor, torch.float32), found * factor),
        "high": error(high, logits.amax(1)),
        "normaliser": error(high + total.log(), normaliser),
        "target": error(target, expected_target),
        "gradient": error(found, expected),
    }


def main() -> None:
    """Prints the errors of small shapes that no block divides."""
    torch.manual_seed(0)
    routing_kernel._TOKENS, routing_kernel._TILE_ELEMENTS = 16, 64
    permutation_kernel._BLOCK_ELEMENTS = 128
    results = {
        "routing": {
            "plain": routing(RoutingRule(2, 1, 1, 2, 1.0), 8, False),
            "biased": routing(RoutingRule(3, 1, 1, 3, 2.5), 8, True),
            "groups": routing(RoutingRule(4, 8, 4, 1, 2.5), 32, True),
            "two_of_a_group": routing(RoutingRule(2, 2, 1, 2, 2.5), 16, True),
            "deepseek": routing(RoutingRule(4, 8, 4, 2, 2.5), 32, True),
            "deepseek_unbiased": routing(RoutingRule(3, 4, 3, 2, 2.5), 32, False),
            "one": routing(RoutingRule(1, 1, 1, 1, 1.0), 4, False),
        },
        "nan": routing_of_nan(),
        "permutation": {
            "four": permutation(53, 16, 4, 24),
            "one": permutation(16, 4, 1, 8),
        },
        "tpa": {
            "usual": tensor_products(TensorProductShape(4, 2, 3, 2, 16, 1e-5)),
            "odd": tensor_products(TensorProductShape(3, 1, 1, 1, 8, 1e-6)),
        },
        "loss": loss_rows(),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
