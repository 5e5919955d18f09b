"""The span loss equals its closed form, however a global batch is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vpmoe.data.batch import Batch, GlobalBatch, count_spans
from vpmoe.data.loss import loss_weights, span_loss

ROWS, LENGTH = 8, 12
WEIGHTS = (0.7, 1.6)


def _spans(seed: int, kinds: tuple[int, ...] = (0, 1, 2)) -> torch.Tensor:
    """int64 [8, 12]; rows differ in how many tokens of a span they hold."""
    generator = np.random.default_rng(seed)
    share = generator.random((ROWS, 1, len(kinds))) ** 3
    picked = (generator.random((ROWS, LENGTH, len(kinds))) * share).argmax(-1)
    return torch.from_numpy(np.array(kinds)[picked])


def _batch(spans: torch.Tensor, step: GlobalBatch | None) -> Batch:
    empty = torch.zeros_like(spans)
    return Batch(
        tokens=empty,
        labels=empty,
        loss_mask=(spans > 0).float(),
        span_id=spans,
        position_ids=empty,
        document_ids=None,
        sample_ids=empty[:, 0],
        step=step,
    )


def _train(
    losses: torch.Tensor, spans: torch.Tensor, ranks: int, parts: int, per_token: bool
) -> tuple[float, torch.Tensor, dict[str, float]]:
    """One step's loss, gradient and report as Megatron 0.19.2's schedules put them together.

    Without --calculate-per-token-loss: over the micro-batch's tokens and the micro-batches
    (`forward_step_calc_loss`), averaged over ranks (`DistributedDataParallel`). With it: summed,
    and over the summed tokens (`finalize_model_grads`).
    """
    leaf = losses.clone().requires_grad_()
    cut_losses = leaf.reshape(ranks, parts, -1, LENGTH)
    cut_spans = spans.reshape(ranks, parts, -1, LENGTH)
    counts = sum(count_spans([{"span_id": part} for part in rank]) for rank in cut_spans)
    step = GlobalBatch(counts, ranks * parts)
    total, tokens, reports = torch.zeros(()), 0, []
    for rank in range(ranks):
        for part in range(parts):
            batch = _batch(cut_spans[rank, part], step)
            loss, number, report = span_loss(cut_losses[rank, part], batch, WEIGHTS)
            reports.append(report)
            if per_token:
                total = total + loss
                tokens += int(number)
            else:
                total = total + loss / number.clamp(min=1) / parts / ranks
    if per_token:
        total = total / tokens
    total.backward()
    summed = {name: sum(report[name] for report in reports) for name in reports[0]}
    assert leaf.grad is not None
    return float(total), leaf.grad, {name: float(v[0] / v[1]) for name, v in summed.items()}


def _closed_form(losses: torch.Tensor, spans: torch.Tensor) -> tuple[float, np.ndarray]:
    value, gradient = 0.0, np.zeros(spans.shape)
    for weight, span in zip(WEIGHTS, (1, 2), strict=True):
        inside = (spans == span).numpy()
        if inside.any():
            value += weight * losses.double().numpy()[inside].mean()
            gradient[inside] = weight / inside.sum()
    return value, gradient


LAYOUTS = [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4), (4, 2), (8, 1)]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), per_token=st.booleans(), layout=st.sampled_from(LAYOUTS))
def test_every_layout_gives_the_closed_form(
    seed: int, per_token: bool, layout: tuple[int, int]
) -> None:
    torch.manual_seed(seed)
    spans, losses = _spans(seed), torch.rand(ROWS, LENGTH) * 9
    loss, gradient, report = _train(losses, spans, *layout, per_token)
    value, slopes = _closed_form(losses, spans)
    assert loss == pytest.approx(value, rel=2e-6)
    np.testing.assert_allclose(gradient.numpy(), slopes, rtol=2e-6)
    plain = losses[spans > 0].double().mean().item()
    assert report["lm loss"] == pytest.approx(plain, rel=2e-6)
    assert report["final loss"] == pytest.approx(losses[spans == 2].mean().item(), rel=2e-6)


def test_mean_of_means_would_differ() -> None:
    """The laws above are not trivially true: rows hold very different numbers of a span."""
    counts = (_spans(0) == 1).sum(-1)
    assert counts.max() > 3 * counts[counts > 0].min()


@pytest.mark.parametrize(("kinds", "missing"), [((0, 2), "reasoning loss"), ((0, 1), "final loss")])
def test_a_missing_span_neither_biases_nor_breaks(kinds: tuple[int, ...], missing: str) -> None:
    torch.manual_seed(1)
    spans, losses = _spans(1, kinds), torch.rand(ROWS, LENGTH)
    loss, gradient, report = _train(losses, spans, 2, 2, False)
    value, slopes = _closed_form(losses, spans)
    assert loss == pytest.approx(value, rel=2e-6)
    np.testing.assert_allclose(gradient.numpy(), slopes, rtol=2e-6)
    assert report[missing] == 0.0


def test_a_micro_batch_without_a_span_keeps_the_step_exact() -> None:
    spans = _spans(2)
    spans[:2] = 0
    spans[2:4][spans[2:4] == 2] = 1
    losses = torch.rand(ROWS, LENGTH)
    loss, _, _ = _train(losses, spans, 1, 4, False)
    assert loss == pytest.approx(_closed_form(losses, spans)[0], rel=2e-6)


def test_nothing_supervised_is_zero_with_zero_gradient() -> None:
    spans, losses = torch.zeros(ROWS, LENGTH, dtype=torch.int64), torch.rand(ROWS, LENGTH)
    loss, gradient, report = _train(losses, spans, 1, 2, False)
    assert (loss, set(report.values())) == (0.0, {0.0})
    assert not gradient.any()


def test_what_is_not_finite_outside_the_mask_does_not_spread() -> None:
    spans = _spans(3)
    losses = torch.rand(ROWS, LENGTH)
    value, _ = _closed_form(losses, spans)
    losses[spans == 0] = float("nan")
    loss, gradient, _ = _train(losses, spans, 1, 1, False)
    assert loss == pytest.approx(value, rel=2e-6)
    assert torch.isfinite(gradient).all()


def test_an_evaluation_reports_plain_sums() -> None:
    spans, losses = _spans(4), torch.rand(ROWS, LENGTH)
    _, _, report = span_loss(losses, _batch(spans, None), WEIGHTS)
    total, count = report["lm loss"].tolist()
    assert total == pytest.approx(losses[spans > 0].sum().item(), rel=1e-6)
    assert count == int((spans > 0).sum())


def test_half_precision_losses_are_summed_in_fp32() -> None:
    spans = torch.full((ROWS, LENGTH), 2)
    losses = torch.full((ROWS, LENGTH), 1.0009765625, dtype=torch.float16)
    step = GlobalBatch(torch.tensor([0, ROWS * LENGTH]), 1)
    loss, number, _ = span_loss(losses, _batch(spans, step), (1.0, 1.0))
    assert loss.dtype == torch.float32
    assert float(loss / number) == pytest.approx(1.0009765625, rel=1e-6)


@pytest.mark.parametrize("kinds", [(0, 1, 2), (0, 1), (0,)])
@pytest.mark.parametrize("trains", [True, False])
def test_announced_weights_are_the_gradient(kinds: tuple[int, ...], trains: bool) -> None:
    """What a chunked loss is told in the forward pass is what the backward pass brings."""
    spans = _spans(5, kinds)
    losses = torch.rand(ROWS, LENGTH, requires_grad=True)
    counts = count_spans([{"span_id": spans}, {"span_id": spans.flip(1)}])
    batch = _batch(spans, GlobalBatch(counts, 2) if trains else None)
    (gradient,) = torch.autograd.grad(span_loss(losses, batch, WEIGHTS)[0], losses)
    torch.testing.assert_close(loss_weights(batch, WEIGHTS), gradient, rtol=1e-6, atol=0.0)
