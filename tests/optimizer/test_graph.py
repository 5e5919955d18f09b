"""A graph of NorMuon's step: the same bits as without, and captured anew when it must be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vpmoe.optimizer import MatrixLayout, NorMuon, graph

SHAPES = ((3, 6, 10), (10, 6), (6, 10), (40, 24))


class Captures:
    """Stands for CUDA's capture: what is captured does not run, and a replay runs it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.captured = self.replayed = 0
        monkeypatch.setattr(graph, "capture", self.capture)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


def trained(
    graph_after: int | None,
    *,
    device: str = "cpu",
    steps: int = 6,
    between: Callable[[int, NorMuon], None] = lambda step, optimizer: None,
) -> list[torch.Tensor]:
    """Weights after steps of a schedule, gradients staying where they are."""
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    weights = [torch.nn.Parameter(draw(shape)) for shape in SHAPES]
    decaying, plain = weights[:2], weights[2:]
    optimizer = NorMuon(
        [{"params": decaying, "weight_decay": 0.1}, {"params": plain}], graph_after=graph_after
    )
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    for step in range(steps):
        between(step, optimizer)
        for group in optimizer.param_groups:
            group["lr"] = 0.3 / (step + 1)
        for weight in weights:
            assert weight.grad is not None
            weight.grad.copy_(draw(tuple(weight.shape)))
        optimizer.step()
    return [weight.detach() for weight in weights]


def test_replays_follow_the_schedule_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trained(None)
    captures = Captures(monkeypatch)
    for one, other in zip(plain, trained(2), strict=True):
        assert torch.equal(one, other)
    assert (captures.captured, captures.replayed) == (1, 4)


def moved_gradients(step: int, optimizer: NorMuon) -> None:
    if step == 4:
        for group in optimizer.param_groups:
            for param in group["params"]:
                # Elsewhere: the old one lives until the new one is there.
                param.grad = torch.empty_like(param)


def other_momentum(step: int, optimizer: NorMuon) -> None:
    if step == 4:
        optimizer.param_groups[0]["momentum"] = 0.5


def without_decay(step: int, optimizer: NorMuon) -> None:
    if step == 4:
        optimizer.param_groups[0]["weight_decay"] = 0.0


def loaded(step: int, optimizer: NorMuon) -> None:
    if step == 4:
        optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("between", [moved_gradients, other_momentum, without_decay, loaded])
def test_another_decision_is_another_graph(
    between: Callable[[int, NorMuon], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(None, between=between)
    captures = Captures(monkeypatch)
    for one, other in zip(plain, trained(1, between=between), strict=True):
        assert torch.equal(one, other)
    assert (captures.captured, captures.replayed) == (2, 4)


def test_a_changing_decay_is_followed_without_another_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def change(step: int, optimizer: NorMuon) -> None:
        optimizer.param_groups[0]["weight_decay"] = 0.1 + 0.01 * step

    plain = trained(None, between=change)
    captures = Captures(monkeypatch)
    for one, other in zip(plain, trained(1, between=change), strict=True):
        assert torch.equal(one, other)
    assert captures.captured == 1


def test_what_a_graph_cannot_take_is_refused() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 6, dtype=torch.float64))
    weight.grad = torch.ones_like(weight)
    with pytest.raises(ValueError, match=r"whole fp32 matrices, found torch.float64"):
        NorMuon([weight], graph_after=1, layout=lambda param: MatrixLayout()).step()


@pytest.mark.gpu
def test_replays_on_a_gpu_have_the_bits_of_steps_without_a_graph() -> None:
    for one, other in zip(trained(None, device="cuda"), trained(2, device="cuda"), strict=True):
        assert torch.equal(one, other)
