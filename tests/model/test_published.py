"""Where vpMoE differs from the published code of GRAPE and TPA, and what the difference is worth.

The numbers are those of `docs/architecture.md`.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from vpmoe.model.grape import initial_log_frequencies, rotate, rotation_angles

CHANNELS, LENGTH = 16, 40


def rotations(sign: float = 1.0) -> torch.Tensor:
    """cos and sin of all positions, fp64 [2, s, 1, 1, d/2]."""
    phi = initial_log_frequencies(CHANNELS, 100, 16.0).double()[None]
    angles = sign * rotation_angles(phi, torch.arange(LENGTH)[None], 16.0)
    return torch.stack((angles.cos(), angles.sin()))


def logits(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """[s, s] of [s, 1, 1, d]."""
    return torch.einsum("id,jd->ij", query[:, 0, 0], key[:, 0, 0])


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, (CHANNELS,), weight, 1e-5)


def content(count: int) -> list[torch.Tensor]:
    """The same content at every position, so that logits show the law of positions alone."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, 1, 1, CHANNELS, generator=generator, dtype=torch.float64).expand(
            LENGTH, -1, -1, -1
        )
        for _ in range(count)
    ]


def spread_over_distance(found: torch.Tensor) -> float:
    """How far logits of one distance differ, relative to the largest logit."""
    worst = max(
        (diagonal.max() - diagonal.min()).item()
        for diagonal in (found.diagonal(-distance) for distance in range(LENGTH))
    )
    return worst / found.abs().max().item()


def test_the_sign_of_theta_is_a_reflection() -> None:
    """-theta, the published code's, gives the logits of +theta with half the channels negated."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, LENGTH, 1, 1, CHANNELS, generator=generator, dtype=torch.float64)
    mirror = torch.ones(CHANNELS, dtype=torch.float64)
    mirror[CHANNELS // 2 :] = -1
    ours, theirs = rotations(), rotations(-1.0)
    expected = logits(rotate(query * mirror, theirs), rotate(key * mirror, theirs))
    torch.testing.assert_close(
        logits(rotate(query, ours), rotate(key, ours)), expected, atol=1e-13, rtol=1e-13
    )
    assert not torch.allclose(expected, logits(rotate(query, theirs), rotate(key, theirs)))


def test_norm_and_rotation_commute_while_a_plane_has_one_weight() -> None:
    """So both orders start as the same model: weights start at 1."""
    (x,) = content(1)
    weight = (1 + torch.rand(CHANNELS // 2, dtype=torch.float64)).repeat(2)
    ours = rotate(normed(x, weight), rotations())
    theirs = normed(rotate(x, rotations()), weight)
    torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=1e-13)


def test_logits_depend_on_distance_alone_only_if_the_norm_comes_first() -> None:
    """With weights that have moved by a tenth, the published order mixes in the position."""
    query, key = content(2)
    generator = torch.Generator().manual_seed(1)
    weight = 1 + 0.1 * torch.randn(CHANNELS, generator=generator, dtype=torch.float64)
    rotation = rotations()
    ours = logits(*(rotate(normed(x, weight), rotation) for x in (query, key)))
    theirs = logits(*(normed(rotate(x, rotation), weight) for x in (query, key)))
    assert spread_over_distance(ours) < 1e-14
    assert 0.05 < spread_over_distance(theirs) < 0.5


def test_initial_factors_of_t6_at_vpmoe_6bs_sizes() -> None:
    """T6 draws [hidden, heads, rank] views by Xavier's rule; vpMoE everything from N(0, 0.02)."""
    hidden, channels = 1024, 128
    generator = torch.Generator().manual_seed(0)
    deviations = {}
    for name, outputs, rank in (
        ("a_q", 8, 4),
        ("a_v", 2, 2),
        ("b_q", 4, channels),
        ("b_v", 2, channels),
    ):
        view = torch.empty(hidden, outputs, rank)
        torch.nn.init.xavier_uniform_(view, generator=generator)
        deviations[name] = view.std().item()
    expected = {"a_q": 0.0220, "a_v": 0.0312, "b_q": 0.0039, "b_v": 0.0039}
    for name, deviation in deviations.items():
        assert abs(deviation / expected[name] - 1) < 0.03, name

    def head(a: float, b: float, rank: int) -> float:
        """Deviation of a composed head's entries, of hidden states of mean square 1."""
        return hidden * a * b / rank**0.5

    ours = head(0.02, 0.02, 4), head(0.02, 0.02, 2)
    theirs = head(expected["a_q"], expected["b_q"], 4), head(expected["a_v"], expected["b_v"], 2)
    assert [round(x, 3) for x in ours] == [0.205, 0.290]
    assert [round(x, 3) for x in theirs] == [0.044, 0.088]
