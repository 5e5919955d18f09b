"""GRAPE-M against RoPE, matrix exponentials and fp64; GRAPE-A against its lifted form and ALiBi."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vpmoe.model.attention.eager import eager_attention
from vpmoe.model.attention.pattern import AttentionPattern
from vpmoe.model.grape import (
    GrapeM,
    alibi_slopes,
    initial_log_frequencies,
    rotate,
    rotation_angles,
)


class OneRank:
    """Stands for a process group of one."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


def grapem(channels: int = 16, **changes: Any) -> GrapeM:
    config = SimpleNamespace(
        kv_channels=channels,
        rotary_base=10000,
        grapem_log_freq_scale=16.0,
        grapem_learnable_freq=True,
        grapem_per_head=False,
        num_query_groups=2,
    )
    vars(config).update(changes)
    groups = SimpleNamespace(tp=OneRank(), pp=OneRank())
    return GrapeM(config, groups)  # type: ignore[arg-type]


def cos_sin(phi: torch.Tensor, positions: torch.Tensor, scale: float = 16.0) -> torch.Tensor:
    angles = rotation_angles(phi.view(1, -1), positions, scale)
    return torch.stack((angles.cos(), angles.sin()))


def test_frozen_frequencies_equal_megatrons_rope(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("cpu"))
    length, channels = 2048, 128
    rope = RotaryEmbedding(
        channels, rotary_percent=1.0, use_cpu_initialization=True, cp_group=OneRank()
    )
    x = torch.randn(length, 1, 2, channels)
    expected = _apply_rotary_pos_emb_bshd(x, rope.get_emb(length))
    module = grapem(channels, grapem_learnable_freq=False)
    assert not module.phi.requires_grad
    actual = rotate(x, module(torch.arange(length)[None]))
    # One ulp of fp32 in a frequency is 1.2e-4 rad at position 2047.
    torch.testing.assert_close(actual, expected, atol=2e-3, rtol=0)
    early = slice(0, 64)
    torch.testing.assert_close(actual[early], expected[early], atol=5e-5, rtol=0)


def test_planes_equal_the_matrix_exponential() -> None:
    channels, length = 8, 12
    phi = initial_log_frequencies(channels, 10000, 16.0).double()
    phi = phi + torch.randn(channels // 2, dtype=torch.float64)
    omega = torch.exp(phi / 16.0)
    generator = torch.zeros(channels, channels, dtype=torch.float64)
    for i in range(channels // 2):
        # L = a b^T - b a^T with a = e_(i + d/2), b = e_i: Megatron's sign of theta.
        generator[i + channels // 2, i] = omega[i]
        generator[i, i + channels // 2] = -omega[i]
    x = torch.randn(length, 1, 1, channels, dtype=torch.float64)
    actual = rotate(x, cos_sin(phi, torch.arange(length)[None]))
    for n in range(length):
        expected = torch.matrix_exp(n * generator) @ x[n, 0, 0]
        torch.testing.assert_close(actual[n, 0, 0], expected, atol=1e-12, rtol=1e-12)


def test_rank_two_closed_form_is_the_plane() -> None:
    # exp(nL) = I + sin(ns)/s L + (1 - cos(ns))/s^2 L^2 for L = a b^T - b a^T.
    a, b = torch.randn(2, 6, dtype=torch.float64)
    generator = torch.outer(a, b) - torch.outer(b, a)
    s = math.sqrt(float(a.dot(a) * b.dot(b) - a.dot(b) ** 2))
    for n in (1, 5):
        closed = (
            torch.eye(6, dtype=torch.float64)
            + math.sin(n * s) / s * generator
            + (1 - math.cos(n * s)) / s**2 * generator @ generator
        )
        torch.testing.assert_close(torch.matrix_exp(n * generator), closed)


def test_gradient_of_phi_in_fp64() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    x = torch.randn(5, 1, 2, 8, dtype=torch.float64)
    phi = initial_log_frequencies(8, 100, 4.0).double().requires_grad_()

    def loss(phi: torch.Tensor) -> torch.Tensor:
        return (rotate(x, cos_sin(phi, positions, 4.0)) ** 3).sum()

    assert torch.autograd.gradcheck(loss, (phi,))


def test_positions_restart_with_documents() -> None:
    module = grapem()
    rotation = module(torch.tensor([[0, 1, 2, 0, 1]]))
    assert torch.equal(rotation[:, 3:], rotation[:, :2])


def test_logits_depend_on_distance_alone() -> None:
    module = grapem()
    q, k = torch.randn(2, 1, 1, 1, 16)
    for i, j in ((5, 3), (105, 103)):
        a = rotate(q, module(torch.tensor([[i]])))
        b = rotate(k, module(torch.tensor([[j]])))
        if i == 5:
            expected = (a * b).sum()
    torch.testing.assert_close((a * b).sum(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
def test_phi_and_rotations_stay_fp32(cast: torch.dtype) -> None:
    module = grapem(128)
    before = module.phi.detach().clone()
    parent = torch.nn.Sequential(module, torch.nn.Linear(2, 2))
    parent.to(cast)
    parent.half()
    assert parent[1].weight.dtype == torch.float16
    assert module.phi.dtype == torch.float32
    assert torch.equal(module.phi, before)
    assert module.state_dict()["phi"].dtype == torch.float32
    rotation = module(torch.tensor([[2047]]))
    assert rotation.dtype == torch.float32
    x = torch.randn(1, 1, 2, 128).to(cast)
    assert rotate(x, rotation).dtype == cast
    # The frequency error that a bf16 round trip would have made.
    moved = torch.exp(before.bfloat16().float() / 16) / torch.exp(before / 16)
    assert (moved - 1).abs().max() > 0.02


def test_per_head_sets_follow_the_groups() -> None:
    module = grapem(8, grapem_per_head=True)
    assert module.phi.shape == (8,)
    with torch.no_grad():
        module.phi[4:] += 1
    rotation = module(torch.tensor([[3]]))
    x = torch.ones(1, 1, 4, 8)
    out = rotate(x, rotation)[0, 0]
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[2], out[3])
    assert not torch.allclose(out[1], out[2])


def test_missing_positions_are_named() -> None:
    with pytest.raises(ValueError, match="position_ids"):
        grapem()(None)


# From Press et al.'s published code: powers of two, else the lower power and every other slope of
# twice it.
PUBLISHED_SLOPES = {
    8: [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256],
    10: [2.0**-n for n in range(1, 9)] + [2.0**-0.5, 2.0**-1.5],
    12: [2.0**-n for n in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5],
}


@pytest.mark.parametrize("heads", sorted(PUBLISHED_SLOPES))
def test_published_alibi_slopes(heads: int) -> None:
    assert alibi_slopes(heads) == pytest.approx(PUBLISHED_SLOPES[heads], rel=1e-15)


def lifted_logits(q: torch.Tensor, k: torch.Tensor, slope: float) -> torch.Tensor:
    """The exact additive form of GRAPE: unipotent actions on lifted vectors [q; 1; 0], [k; 0; 1].

    A has one entry, so A^2 = 0; (I + i w A) q^ and (I - j w A)^T k^ meet in q.k + w (i - j).
    """
    length, channels = q.shape
    nilpotent = torch.zeros(channels + 2, channels + 2, dtype=q.dtype)
    nilpotent[channels + 1, channels] = 1
    assert not (nilpotent @ nilpotent).any()
    eye = torch.eye(channels + 2, dtype=q.dtype)
    one, zero = torch.ones(length, 1, dtype=q.dtype), torch.zeros(length, 1, dtype=q.dtype)
    left = torch.cat((q, one, zero), 1)
    right = torch.cat((k, zero, one), 1)
    w = -slope
    rows = torch.stack([(eye + i * w * nilpotent) @ left[i] for i in range(length)])
    cols = torch.stack([(eye - j * w * nilpotent).T @ right[j] for j in range(length)])
    return rows @ cols.T


def test_grape_a_equals_the_lifted_unipotent_form() -> None:
    length, heads, channels = 9, 2, 4
    q, k, v = torch.randn(3, length, 1, heads, channels, dtype=torch.float64)
    slopes = alibi_slopes(heads)
    pattern = AttentionPattern(channels**-0.5, slopes=slopes)
    actual = eager_attention(q, k, v, None, None, pattern).view(length, heads, channels)
    for h in range(heads):
        logits = lifted_logits(q[:, 0, h] * channels**-0.5, k[:, 0, h], slopes[h])
        masked = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -math.inf)
        expected = torch.softmax(masked, -1) @ v[:, 0, h]
        torch.testing.assert_close(actual[:, h], expected, atol=1e-12, rtol=1e-12)


def test_bf16_inputs_keep_fp32_logits_at_2048() -> None:
    length, heads, channels = 2048, 2, 16
    q, k, v = (torch.randn(length, 1, heads, channels).bfloat16() for _ in range(3))
    pattern = AttentionPattern(channels**-0.5, slopes=alibi_slopes(heads))
    actual = eager_attention(q, k, v, None, None, pattern)
    exact = eager_attention(q.double(), k.double(), v.double(), None, None, pattern)
    assert actual.dtype == torch.bfloat16
    error = (actual.double() - exact).norm() / exact.norm()
    assert error < 4e-3
    # Logits, read back from the log of probabilities: identity values of the last query.
    last = torch.log(torch.softmax(_last_logits(q.float(), k.float(), pattern), -1))
    oracle = torch.log_softmax(_last_logits(q.double(), k.double(), pattern), -1)
    recent = slice(-64, None)
    relative = (last[:, recent].double() - oracle[:, recent]).abs() / oracle[:, recent].abs()
    assert relative.max() < 1e-3


def _last_logits(q: torch.Tensor, k: torch.Tensor, pattern: AttentionPattern) -> torch.Tensor:
    distance = torch.arange(q.shape[0] - 1, -1, -1, dtype=q.dtype)
    slopes = torch.tensor(pattern.slopes, dtype=q.dtype)
    dots = torch.einsum("hd,shd->hs", q[-1, 0], k[:, 0]) * pattern.scale
    return dots - slopes[:, None] * distance
