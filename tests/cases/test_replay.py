"""The fp64 replay: right steps hold, each wrong one does not."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vpmoe.cases.replay import Polynomials, before_step, polynomials, replay, ulp_shares
from vpmoe.optimizer import NorMuon
from vpmoe.optimizer.polar_express import polar_express_coefficients

SHAPES = [(12, 40), (40, 12), (16, 16), (5, 8, 24)]


def optimizer(kind: str, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """What vpMoE trains with."""
    if kind == "NorMuon":
        return NorMuon(weights, lr=0.02, weight_decay=0.1)
    return torch.optim.AdamW(weights, lr=0.02, weight_decay=0.1, betas=(0.9, 0.95))


def replays(
    kind: str, meddle: Callable[[torch.optim.Optimizer, torch.nn.Parameter], None] | None = None
) -> list[Any]:
    """Three steps; the last one replayed, for every parameter."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    chosen = optimizer(kind, weights)
    found: list[Any] = []
    for step in range(3):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator) * 1e-3
        group = chosen.param_groups[0]
        befores = [before_step(weight, chosen, group) for weight in weights]
        if step == 2 and meddle is not None:
            for weight in weights:
                meddle(chosen, weight)
        chosen.step()
        found = [replay(before) for before in befores if before is not None]
        assert len(found) == len(weights)
    return found


@pytest.mark.parametrize("kind", ["NorMuon", "AdamW"])
def test_right_steps_hold(kind: str) -> None:
    found = replays(kind)
    assert all(entry.error <= entry.bound for entry in found)
    shares = ulp_shares(found)
    assert list(shares.values()) == sorted(shares.values())
    assert shares["at_most_16"] > 0.9


def lose_state(chosen: torch.optim.Optimizer, weight: torch.nn.Parameter) -> None:
    chosen.state[weight].clear()


def scale_gradient(chosen: torch.optim.Optimizer, weight: torch.nn.Parameter) -> None:
    assert weight.grad is not None
    weight.grad = weight.grad * torch.linspace(0.9, 1.1, weight.shape[-1])


def double_decay(chosen: torch.optim.Optimizer, weight: torch.nn.Parameter) -> None:
    weight.data.mul_(1 - 0.02 * 0.1)


def more_lr(chosen: torch.optim.Optimizer, weight: torch.nn.Parameter) -> None:
    weight.data.add_(1e-4)


@pytest.mark.parametrize("kind", ["NorMuon", "AdamW"])
@pytest.mark.parametrize("meddle", [lose_state, scale_gradient, double_decay, more_lr])
def test_wrong_steps_do_not_hold(kind: str, meddle: Callable[..., None]) -> None:
    found = replays(kind, meddle)
    assert any(entry.error > entry.bound for entry in found)


def test_what_is_not_replayed() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 4))
    chosen = optimizer("AdamW", [weight])
    assert before_step(weight, chosen, chosen.param_groups[0]) is None  # no gradient
    weight.grad = torch.ones(3, 4)
    sgd = torch.optim.SGD([weight], lr=0.1)
    assert before_step(weight, sgd, sgd.param_groups[0]) is None


def test_the_polynomials_are_those_that_the_flags_ask_for(tmp_path: Path) -> None:
    flags = Namespace(polar_express_safety_factor=0.02, polar_express_coeffs_path=None)
    for found, computed in zip(
        polynomials(flags).coefficients, polar_express_coefficients(0.02), strict=True
    ):
        assert found == pytest.approx(computed, rel=1e-9)
    path = tmp_path / "coefficients.json"
    path.write_text(json.dumps([[2, -1.5, 0.5]] * 3))
    given = Namespace(polar_express_safety_factor=0.05, polar_express_coeffs_path=path)
    assert polynomials(given) == Polynomials([[2, -1.5, 0.5]] * 3, 0.05)
    other = Namespace(polar_express_safety_factor=0.05, polar_express_coeffs_path=None)
    with pytest.raises(ValueError, match="give them with --polar-express-coeffs-path"):
        polynomials(other)


@pytest.mark.parametrize(("wanted", "holds"), [(0.02, True), (0.3, False)])
def test_a_step_with_other_polynomials_does_not_hold(wanted: float, holds: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(12, 40, generator=generator))
    weight.grad = torch.randn(12, 40, generator=generator)
    rows = [(2.0, -1.5, 0.5)] * 3
    chosen = NorMuon([weight], lr=0.02, safety_factor=0.02, coefficients=tuple(rows))
    before = before_step(weight, chosen, chosen.param_groups[0], Polynomials(rows, wanted))
    assert before is not None
    chosen.step()
    replayed = replay(before)
    assert (replayed.error <= replayed.bound) == holds
