"""TPA: MHA and GQA are its special cases; rotating B is rotating the composed heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vpmoe.model.grape import initial_log_frequencies, rotate, rotation_angles

HEADS, CHANNELS, HIDDEN = 4, 8, 32


@torch.no_grad()
def constant_factors(tpa: Any, groups: int, weights: dict[str, torch.Tensor]) -> None:
    """Makes A constant: the last component of x is 1, and A reads nothing else.

    A_q[h, r] = R_q delta_hr turns q_h into B_q's row block h, which is MHA's projection.
    """
    qkv = tpa.linear_qkv
    for name, rank in (("q", HEADS), ("k", groups), ("v", groups)):
        a, b = getattr(qkv, f"a_{name}"), getattr(qkv, f"b_{name}")
        a.zero_()
        a.view(rank, rank, HIDDEN)[:, :, -1] = rank * torch.eye(rank)
        b.copy_(weights[name])


def interleaved(weights: dict[str, torch.Tensor], groups: int) -> torch.Tensor:
    """Megatron's linear_qkv: for each group its query heads, its key, its value."""
    q = weights["q"].view(groups, HEADS // groups * CHANNELS, HIDDEN)
    k = weights["k"].view(groups, CHANNELS, HIDDEN)
    v = weights["v"].view(groups, CHANNELS, HIDDEN)
    return torch.cat((q, k, v), 1).reshape(-1, HIDDEN)


@pytest.mark.parametrize("groups", [HEADS, 2], ids=["MHA", "GQA"])
def test_constant_factors_are_multi_head_and_grouped_attention(
    small_model: Callable[..., Any], groups: int
) -> None:
    changes = {"num_query_groups": groups, "num_moe_experts": None}
    with_tpa = small_model(**changes, tpa_rank=groups, tpa_q_rank=HEADS).double()
    without = small_model(**changes, use_tpa=False).double()
    tpa = with_tpa.decoder.layers[0].self_attention
    mha = without.decoder.layers[0].self_attention
    weights = {
        name: torch.randn(count * CHANNELS, HIDDEN, dtype=torch.float64)
        for name, count in (("q", HEADS), ("k", groups), ("v", groups))
    }
    constant_factors(tpa, groups, weights)
    with torch.no_grad():
        mha.linear_qkv.weight.copy_(interleaved(weights, groups))
        mha.linear_proj.weight.copy_(tpa.linear_proj.weight)
    x = torch.randn(11, 2, HIDDEN, dtype=torch.float64)
    x[..., -1] = 1
    rotation = with_tpa.grapem(torch.arange(11).expand(2, 11))
    for a, b in zip(
        tpa.get_query_key_value_tensors(x), mha.get_query_key_value_tensors(x), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-13, rtol=1e-13)
    ours, _ = tpa(x, None, rotary_pos_emb=rotation)
    theirs, _ = mha(x, None, rotary_pos_emb=rotation)
    torch.testing.assert_close(ours, theirs, atol=1e-13, rtol=1e-13)


def test_composition_is_the_papers_formula(small_model: Callable[..., Any]) -> None:
    attention = small_model(qk_layernorm=False).double().decoder.layers[1].self_attention
    qkv = attention.linear_qkv
    x = torch.randn(3, 1, HIDDEN, dtype=torch.float64)
    query, key, value = attention.get_query_key_value_tensors(x)
    for composed, name, count, rank in (
        (query, "q", HEADS, 3),
        (key, "k", 2, 2),
        (value, "v", 2, 2),
    ):
        for t in range(3):
            a = (getattr(qkv, f"a_{name}") @ x[t, 0]).view(count, rank)
            b = (getattr(qkv, f"b_{name}") @ x[t, 0]).view(rank, CHANNELS)
            for h in range(count):
                expected = sum(a[h, r] * b[r] for r in range(rank)) / rank
                torch.testing.assert_close(composed[t, 0, h], expected, atol=1e-14, rtol=1e-12)


def test_rotating_b_is_rotating_the_heads(small_model: Callable[..., Any]) -> None:
    qkv = small_model(qk_layernorm=False).double().decoder.layers[1].self_attention.linear_qkv
    length = 6
    phi = initial_log_frequencies(CHANNELS, 100, 16.0).double()[None]
    angles = rotation_angles(phi, torch.arange(length)[None], 16.0)
    rotation = torch.stack((angles.cos(), angles.sin()))
    x = torch.randn(length, 1, HIDDEN, dtype=torch.float64)
    a = torch.einsum("oi,sbi->sbo", qkv.a_q, x).view(length, 1, HEADS, 3)
    b = torch.einsum("oi,sbi->sbo", qkv.b_q, x).view(length, 1, 3, CHANNELS)
    composed = rotate(a @ b / 3, rotation)
    torch.testing.assert_close(a @ rotate(b, rotation) / 3, composed, atol=1e-15, rtol=1e-12)


def test_tpa_is_on_local_layers_only(small_model: Callable[..., Any]) -> None:
    from vpmoe.model.tpa import TPASelfAttention

    layers = small_model().decoder.layers
    kinds = [isinstance(layer.self_attention, TPASelfAttention) for layer in layers]
    assert kinds == [True, True, True, False]
