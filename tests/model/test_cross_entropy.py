"""The chunked loss against torch's cross entropy, in fp64 and through a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from vpmoe.model import cross_entropy
from vpmoe.model.cross_entropy import chunked_cross_entropy

TOKENS, WIDTH, VOCABULARY = 29, 12, 50


@pytest.fixture(params=[1 << 30, 7 * VOCABULARY * 8])
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tokens at once, and chunks of seven."""
    monkeypatch.setattr(cross_entropy, "_CHUNK_BYTES", request.param)


def problem(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states and matrix that want gradients, and labels."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), labels


def token_weights() -> torch.Tensor:
    """Some of them zero."""
    weights = torch.rand(TOKENS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.where(weights < 0.3, 0.0, weights)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("known", [False, True], ids=["backward", "forward"])
def test_losses_and_gradients_are_those_of_torch(known: bool) -> None:
    """Whether gradients are computed in the backward or, with weights known, the forward pass."""
    hidden, weight, labels = problem()
    weights = token_weights()
    losses = chunked_cross_entropy(hidden, weight, labels, weights if known else None)
    expected = functional.cross_entropy(hidden @ weight.t(), labels, reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad((losses * weights).sum() * 0.37, (hidden, weight))
    wanted = torch.autograd.grad((expected * weights).sum() * 0.37, (hidden, weight))
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=1e-11, atol=1e-13)


@pytest.mark.usefixtures("chunked")
def test_gradients_agree_with_finite_differences() -> None:
    """torch's gradcheck, in fp64."""
    hidden, weight, labels = problem()
    assert torch.autograd.gradcheck(
        lambda h, w: chunked_cross_entropy(h, w, labels), (hidden, weight)
    )


def test_single_precision_is_close_to_double() -> None:
    """fp32 sums."""
    hidden, weight, labels = problem(torch.float32)
    losses = chunked_cross_entropy(hidden, weight, labels)
    assert losses.dtype == torch.float32
    exact, exact_weight, _ = problem()
    expected = chunked_cross_entropy(exact, exact_weight, labels)
    assert float((losses - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("changed", [0, TOKENS - 1])
def test_another_gradient_than_announced_is_never_used(changed: int) -> None:
    """One token's differs: the gradients are NaN, which Megatron reports, and not wrong."""
    hidden, weight, labels = problem()
    weights = torch.rand(TOKENS, dtype=torch.float64) + 0.5
    losses = chunked_cross_entropy(hidden, weight, labels, weights)
    upstream = weights.clone()
    upstream[changed] *= 1.01
    for gradient in torch.autograd.grad(losses, (hidden, weight), upstream):
        assert bool(gradient.isnan().all())


def test_without_any_weight_gradients_are_zero() -> None:
    """A micro-batch of nothing but padding."""
    hidden, weight, labels = problem()
    zeros = torch.zeros(TOKENS, dtype=torch.float64)
    losses = chunked_cross_entropy(hidden, weight, labels, zeros)
    for gradient in torch.autograd.grad(losses, (hidden, weight), zeros):
        assert not bool(gradient.any())


@pytest.mark.parametrize("known", [False, True])
def test_model_gives_the_same_losses_and_gradients(
    small_model: Callable[..., Any], known: bool
) -> None:
    """`--loss-kernel chunked` against Megatron's output layer and loss, in the whole model."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(64, (2, 21), generator=generator)
    weights = torch.rand(2, 21, generator=generator)
    results = []
    for kernel in ("full", "chunked"):
        model = small_model(loss_kernel=kernel)
        losses = model(
            tokens,
            torch.arange(21).expand(2, 21),
            labels=tokens.roll(-1, 1),
            loss_weights=weights if known else None,
        )
        assert losses.shape == (2, 21)
        (losses * weights).sum().backward()
        results.append([losses, *(p.grad for p in model.parameters() if p.grad is not None)])
    for full, chunked_one in zip(*results, strict=True):
        torch.testing.assert_close(chunked_one, full, rtol=1e-5, atol=1e-6)


def test_evaluation_needs_no_weights(small_model: Callable[..., Any]) -> None:
    """Without gradients the losses are the same."""
    tokens = torch.randint(64, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full, chunked_one = (
            small_model(loss_kernel=kernel)(tokens, torch.arange(9)[None], labels=tokens)
            for kernel in ("full", "chunked")
        )
    torch.testing.assert_close(chunked_one, full)


def _share_the_vocabulary(rank: int, folder: str, known: bool) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    hidden, weight, labels = problem()
    weights = token_weights()
    part = weight.detach().chunk(2)[rank].clone().requires_grad_()
    losses = chunked_cross_entropy(
        hidden, part, labels, weights if known else None, torch.distributed.group.WORLD
    )
    d_hidden, d_part = torch.autograd.grad((losses * weights).sum(), (hidden, part))
    torch.distributed.all_reduce(d_hidden)
    torch.save((losses.detach(), d_hidden, d_part), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("known", [False, True])
def test_ranks_share_the_vocabulary(tmp_path: Path, known: bool) -> None:
    """Two tensor-parallel ranks with half of the rows each are one with all of them."""
    torch.multiprocessing.spawn(_share_the_vocabulary, (str(tmp_path), known), nprocs=2)
    hidden, weight, labels = problem()
    expected = functional.cross_entropy(hidden @ weight.t(), labels, reduction="none")
    d_hidden, d_weight = torch.autograd.grad((expected * token_weights()).sum(), (hidden, weight))
    for rank in range(2):
        losses, found, found_part = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(losses, expected.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found, d_hidden, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(found_part, d_weight.chunk(2)[rank], rtol=1e-11, atol=1e-13)
