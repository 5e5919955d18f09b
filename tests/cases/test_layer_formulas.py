"""The formulas in fp64 that the case `longest` holds the model to, against what others wrote."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from vpmoe.cases import layer_formulas
from vpmoe.cases.layer_formulas import Shape
from vpmoe.export.reference import alibi_slopes, positions_of

SHAPE = Shape(
    heads=4,
    groups=2,
    channels=8,
    eps=1e-5,
    q_rank=3,
    rank=2,
    window=5,
    frequency_scale=16.0,
    topk=2,
    expert_groups=2,
    group_topk=1,
    scaling=2.5,
)
HIDDEN, LENGTH = 12, 24
DOCUMENTS = torch.tensor([0] * 13 + [1] + [2] * 10)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention_weights(local: bool) -> dict[str, torch.Tensor]:
    heads, groups, channels = SHAPE.heads, SHAPE.groups, SHAPE.channels
    shapes: dict[str, tuple[int, ...]] = {
        "linear_proj.weight": (HIDDEN, heads * channels),
        "q_layernorm.weight": (channels,),
        "k_layernorm.weight": (channels,),
        "core_attention.softmax_offset": (heads,),
    }
    if local:
        for name, count, rank in (("q", heads, 3), ("k", groups, 2), ("v", groups, 2)):
            shapes[f"linear_qkv.a_{name}"] = (count * rank, HIDDEN)
            shapes[f"linear_qkv.b_{name}"] = (rank * channels, HIDDEN)
    else:
        shapes["linear_qkv.weight"] = ((heads + 2 * groups) * channels, HIDDEN)
    return {name: draw(*shape, seed=n) for n, (name, shape) in enumerate(shapes.items())}


def attended(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, i: int, h: int, local: bool
) -> tuple[list[float], list[torch.Tensor]]:
    """Logits and values of the keys that one query sees in one head."""
    slope = alibi_slopes(SHAPE.heads)[h]
    logits, values = [], []
    for j in range(i + 1):
        if DOCUMENTS[j] != DOCUMENTS[i] or (local and i - j >= SHAPE.window):
            continue
        logit = float(q[i, h] @ k[j, h // 2]) / math.sqrt(SHAPE.channels)
        logits.append(logit if local else logit - slope * (i - j))
        values.append(v[j, h // 2])
    return logits, values


@pytest.mark.parametrize("local", [True, False])
def test_attention_is_what_it_is_key_by_key(local: bool) -> None:
    x, weights, phi = draw(LENGTH, HIDDEN, seed=20), attention_weights(local), draw(4, seed=21)
    normed = torch.nn.functional.rms_norm
    heads = []
    for name, count, rank in (("q", 4, 3), ("k", 2, 2), ("v", 2, 2)):
        if local:
            a = (x @ weights[f"linear_qkv.a_{name}"].T).view(LENGTH, count, rank)
            b = (x @ weights[f"linear_qkv.b_{name}"].T).view(LENGTH, rank, 8)
            part = torch.stack([a[t] @ b[t] / rank for t in range(LENGTH)])
        else:
            rows = (x @ weights["linear_qkv.weight"].T).view(LENGTH, 2, 4, 8)
            at = {"q": slice(0, 2), "k": slice(2, 3), "v": slice(3, 4)}[name]
            part = rows[:, :, at].reshape(LENGTH, count, 8)
        if name != "v":
            part = normed(part, (8,), weights[f"{name}_layernorm.weight"], 1e-5)
        heads.append(part)
    q, k, v = heads
    if local:
        angle = positions_of(DOCUMENTS[None])[0, :, None].double() * (phi / 16.0).exp()
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        q, k = (
            torch.cat(
                (t[..., :4] * cos - t[..., 4:] * sin, t[..., 4:] * cos + t[..., :4] * sin), -1
            )
            for t in (q, k)
        )
        found = layer_formulas.local_attention(x, weights, phi, DOCUMENTS, SHAPE)
    else:
        found = layer_formulas.global_attention(x, weights, DOCUMENTS, SHAPE)
    for i in (0, 12, 13, 14, 23):
        context = []
        for h in range(SHAPE.heads):
            logits, values = attended(q, k, v, i, h, local)
            parts = [math.exp(logit) for logit in logits]
            total = sum(parts) + math.exp(float(weights["core_attention.softmax_offset"][h]))
            context.append(sum(p / total * value for p, value in zip(parts, values, strict=True)))
        expected = weights["linear_proj.weight"] @ torch.cat(context)  # type: ignore[arg-type]
        torch.testing.assert_close(found[i], expected)


def test_experts_are_the_best_of_the_best_group() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.6, 0.5], [0.2, 0.3, 0.1, 0.35]], dtype=torch.float64)
    chosen, gap = layer_formulas.choice(scores, torch.zeros(4, dtype=torch.float64), SHAPE)
    # A group of two counts by both of its experts.
    assert chosen.tolist() == [[False, False, True, True], [True, True, False, False]]
    assert gap.tolist() == pytest.approx([0.1, 0.05])
    bias = torch.tensor([0.2, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert layer_formulas.choice(scores, bias, SHAPE)[0][0].tolist() == [True, True, False, False]


def test_experts_are_weighed_by_their_scores_alone() -> None:
    weights = {
        "router.weight": draw(4, HIDDEN, seed=1),
        "shared_experts.linear_fc1.weight": torch.zeros(3, HIDDEN, dtype=torch.float64),
        "shared_experts.linear_fc2.weight": draw(HIDDEN, 3, seed=2),
    }
    for expert in range(4):
        prefix = f"experts.local_experts.{expert}."
        weights[f"{prefix}linear_fc1.weight"] = draw(3, HIDDEN, seed=10 + expert)
        weights[f"{prefix}linear_fc2.weight"] = draw(HIDDEN, 3, seed=20 + expert)
    x = draw(1, HIDDEN, seed=3)
    chosen = torch.tensor([[True, False, False, True]])
    scores = (weights["router.weight"] @ x[0]).sigmoid()
    expected = torch.zeros(HIDDEN, dtype=torch.float64)
    for expert in (0, 3):
        prefix = f"experts.local_experts.{expert}."
        inner = (weights[f"{prefix}linear_fc1.weight"] @ x[0]).relu() ** 2
        share = 2.5 * scores[expert] / (scores[0] + scores[3])
        expected += share * (weights[f"{prefix}linear_fc2.weight"] @ inner)
    torch.testing.assert_close(layer_formulas.experts(x, weights, chosen, SHAPE)[0], expected)


def test_a_balanced_choice_has_a_balancing_loss_of_one() -> None:
    even = torch.eye(4, dtype=torch.float64) + torch.eye(4, dtype=torch.float64).roll(1, 0)
    assert float(layer_formulas.balancing_loss(even + 0.5, 2)) == pytest.approx(1.0)
    skewed = torch.tensor([[3.0, 2.0, 0.0, 0.0]] * 4, dtype=torch.float64)
    assert float(layer_formulas.balancing_loss(skewed, 2)) == pytest.approx(4 / 2)


def test_losses_are_cross_entropies() -> None:
    x, output, labels = draw(5, HIDDEN), draw(9, HIDDEN, seed=1), torch.tensor([0, 8, 3, 3, 1])
    expected = torch.nn.functional.cross_entropy(x @ output.T, labels, reduction="none")
    torch.testing.assert_close(layer_formulas.losses(x, output, labels), expected)


def test_a_window_of_all_tokens_is_no_window() -> None:
    x, weights, phi = draw(LENGTH, HIDDEN), attention_weights(True), draw(4, seed=5)
    found = [
        layer_formulas.local_attention(
            x, weights, phi, DOCUMENTS, dataclasses.replace(SHAPE, window=window)
        )
        for window in (13, 24, 5)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
