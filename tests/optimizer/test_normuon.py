"""NorMuon against its formulas in fp64, and what its batching must not change."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference_normuon import ReferenceNorMuon
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vpmoe.optimizer import MatrixLayout, NorMuon

STEPS = 20
Draw = Callable[[torch.Generator], torch.Tensor]


def gaussian(m: int, n: int, scale: float = 1.0) -> Draw:
    return lambda generator: scale * torch.randn(m, n, generator=generator)


def rank_one(m: int, n: int) -> Draw:
    def draw(generator: torch.Generator) -> torch.Tensor:
        return torch.outer(torch.randn(m, generator=generator), torch.randn(n, generator=generator))

    return draw


def fixed_rank_one(m: int, n: int) -> Draw:
    one = torch.Generator().manual_seed(5)
    matrix = torch.outer(torch.randn(m, generator=one), torch.randn(n, generator=one))
    return lambda generator: matrix * (1 + torch.rand(1, generator=generator))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("draw", "tolerance"),
    [
        pytest.param(gaussian(16, 48), 1e-5, id="wide"),
        pytest.param(gaussian(48, 16), 1e-5, id="tall"),
        pytest.param(gaussian(24, 24), 1e-5, id="square"),
        pytest.param(gaussian(1, 40), 1e-3, id="one row"),
        pytest.param(gaussian(40, 1), 1e-3, id="one column"),
        pytest.param(rank_one(16, 24), 1e-3, id="rank-1 draws"),
        pytest.param(fixed_rank_one(16, 24), 1e-3, id="rank 1"),
        pytest.param(
            lambda g: gaussian(16, 24)(g) * (torch.arange(16) < 3)[:, None], 1e-3, id="rank 3"
        ),
    ],
)
def test_updates_follow_the_formulas(draw: Draw, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros_like(draw(generator)))
    optimizer = NorMuon([weight], lr=1.0)
    m, n = weight.shape
    reference = ReferenceNorMuon((m, n))
    for _ in range(STEPS):
        weight.data.zero_()
        weight.grad = draw(generator)
        expected = reference.update(weight.grad)
        optimizer.step()
        assert relative(-weight.data, expected) <= tolerance


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_extreme_scales_are_finite_and_scale_invariant(scale: float) -> None:
    plain, scaled = (torch.nn.Parameter(torch.zeros(16, 24)) for _ in range(2))
    optimizers = [NorMuon([p], lr=1.0) for p in (plain, scaled)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        gradient = torch.randn(16, 24, generator=generator)
        for weight, factor, optimizer in zip(
            (plain, scaled), (1.0, scale), optimizers, strict=True
        ):
            weight.data.zero_()
            weight.grad = gradient * factor
            optimizer.step()
        assert torch.isfinite(scaled).all()
        assert relative(scaled.data, plain.data.double()) < 1e-5


def test_zero_gradients_leave_the_weight() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 6))
    optimizer = NorMuon([weight], lr=1.0)
    for _ in range(3):
        weight.grad = torch.zeros(4, 6)
        optimizer.step()
    assert torch.equal(weight.data, torch.ones(4, 6))


def test_weight_decay_is_decoupled() -> None:
    start = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    plain, decayed = (torch.nn.Parameter(start.clone()) for _ in range(2))
    gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    for weight, decay in ((plain, 0.0), (decayed, 0.5)):
        weight.grad = gradient.clone()
        NorMuon([weight], lr=0.1, weight_decay=decay).step()
    assert torch.allclose(decayed.data, plain.data - start * 0.05, rtol=0, atol=1e-6)


def test_stacks_and_chunks_equal_single_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    import vpmoe.optimizer.normuon as module

    generator = torch.Generator().manual_seed(3)
    stacked = torch.nn.Parameter(torch.zeros(7, 6, 10))
    singles = [torch.nn.Parameter(torch.zeros(6, 10)) for _ in range(7)]
    missing = torch.nn.Parameter(torch.zeros(6, 10))
    monkeypatch.setattr(module, "_SMALLEST_CHUNK", 130)
    together = NorMuon([stacked, missing], lr=1.0)
    alone = [NorMuon([p], lr=1.0) for p in singles]
    for _ in range(4):
        stacked.grad = torch.randn(7, 6, 10, generator=generator)
        together.step()
        for index, (weight, optimizer) in enumerate(zip(singles, alone, strict=True)):
            weight.grad = stacked.grad[index]
            optimizer.step()
    assert torch.allclose(stacked.data, torch.stack([p.data for p in singles]), rtol=0, atol=1e-5)
    assert not missing.any()


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of tensors that operations create, until their storage is freed."""

    def __init__(self, held: list[torch.Tensor]) -> None:
        super().__init__()
        self.storages = {tensor.untyped_storage()._cdata for tensor in held}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.storages:
                    self.storages.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        return result

    def freed(self, storage: int, size: int) -> None:
        self.storages.discard(storage)
        self.now -= size


@pytest.mark.parametrize(
    ("shapes", "block_rows"),
    [
        pytest.param([(48, 96)] * 300 + [(96, 48)] * 300, None, id="separate"),
        pytest.param([(40, 64, 96)] * 3, None, id="stacked"),
        pytest.param([(96, 64)] * 400, (32, 8, 8), id="blocks"),
    ],
)
def test_extra_memory_is_a_tenth_of_the_state(
    shapes: list[tuple[int, ...]],
    block_rows: tuple[int, ...] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import vpmoe.optimizer.normuon as module

    monkeypatch.setattr(module, "_SMALLEST_CHUNK", 1)
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = NorMuon(weights, layout=lambda p: MatrixLayout(block_rows=block_rows))
    optimizer.step()
    state = [tensor for entry in optimizer.state.values() for tensor in entry.values()]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    memory = LiveMemory([*weights, *gradients, *state])
    with memory:
        optimizer.step()
    assert 0 < memory.peak < 0.1 * sum(tensor.numel() * 4 for tensor in state)
    assert memory.now == 0


def test_blocks_of_a_fused_weight_are_matrices_of_their_own() -> None:
    generator = torch.Generator().manual_seed(4)
    groups, widths, n = 2, (6, 3, 3), 8
    fused = torch.nn.Parameter(torch.zeros(groups * sum(widths), n))
    optimizer = NorMuon([fused], lr=1.0, layout=lambda p: MatrixLayout(block_rows=widths))
    blocks = [torch.nn.Parameter(torch.zeros(groups * w, n)) for w in widths]
    alone = NorMuon(blocks, lr=1.0)
    for _ in range(4):
        gradient = torch.randn(groups * sum(widths), n, generator=generator)
        fused.grad = gradient
        parts = gradient.view(groups, sum(widths), n).split(widths, dim=1)
        for block, part in zip(blocks, parts, strict=True):
            block.grad = part.reshape(-1, n).clone()
        optimizer.step()
        alone.step()
    found = fused.data.view(groups, sum(widths), n).split(widths, dim=1)
    for block, part in zip(blocks, found, strict=True):
        assert torch.allclose(part.reshape(-1, n), block.data, rtol=0, atol=1e-6)


def test_state_dict_continues_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(6)
    gradients = [torch.randn(8, 6, generator=generator) for _ in range(STEPS)]
    weights = [torch.nn.Parameter(torch.zeros(8, 6)) for _ in range(2)]
    straight, first = (NorMuon([p], lr=0.1, weight_decay=0.1) for p in weights)
    for gradient in gradients:
        weights[0].grad = gradient
        straight.step()
    for gradient in gradients[:10]:
        weights[1].grad = gradient
        first.step()
    resumed = NorMuon([weights[1]], lr=0.1, weight_decay=0.1)
    resumed.load_state_dict(first.state_dict())
    for gradient in gradients[10:]:
        weights[1].grad = gradient
        resumed.step()
    assert torch.equal(weights[0].data, weights[1].data)


def test_nan_reaches_only_its_own_matrix() -> None:
    """Batching doesn't spread a NaN; the step on top of Megatron is skipped before it gets here."""
    weights = [torch.nn.Parameter(torch.zeros(4, 5)) for _ in range(2)]
    weights[0].grad = torch.full((4, 5), torch.nan)
    weights[1].grad = torch.randn(4, 5)
    NorMuon(weights, lr=1.0).step()
    assert weights[0].isnan().all()
    assert weights[1].isfinite().all()


@pytest.mark.parametrize("shape", [(), (4,), (2, 2, 2, 2), (0, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="matrices"):
        NorMuon([torch.nn.Parameter(torch.zeros(shape))])


def test_half_precision_weights_are_refused() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.bfloat16))
    weight.grad = torch.zeros_like(weight)
    with pytest.raises(ValueError, match="fp32 main weights"):
        NorMuon([weight]).step()


@pytest.mark.parametrize(
    "options", [{"lr": -1.0}, {"momentum": 1.0}, {"beta2": -0.1}, {"weight_decay": -1.0}]
)
def test_hyperparameters_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        NorMuon([torch.nn.Parameter(torch.zeros(2, 2))], **options)  # type: ignore[arg-type]
