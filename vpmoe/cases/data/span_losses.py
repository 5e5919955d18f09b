"""Records of the span loss: exact values of small batches, and its law in fractions."""

from __future__ import annotations

from fractions import Fraction

import torch

from validation.running.recorder import Recorder
from vpmoe.data.batch import Batch, GlobalBatch, count_spans
from vpmoe.data.loss import loss_weights, span_loss

_WEIGHTS = {
    "reasoning": (2.0, 0.0),
    "final": (0.0, 0.5),
    "both": (0.375, 1.75),
    "plain": (1.0, 1.0),
}
# Spans of a global batch of two micro-batches, whose sums divide without rounding.
_SPANS = {
    "both": ([[0, 1, 1, 2], [1, 1, 2, 2]], [[2, 2, 2, 2], [0, 2, 0, 0]]),
    "no_final": ([[0, 1, 1, 0], [0, 0, 0, 0]], [[1, 1, 0, 0], [0, 0, 0, 0]]),
    "nothing": ([[0, 0, 0, 0], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]),
}
_RANKS = 2  # of data parallelism, which all hold the same


def record_span_losses(recorder: Recorder) -> None:
    """Records loss, number of tokens, report and weights of each micro-batch."""
    losses = torch.arange(8, dtype=torch.float32).reshape(2, 4) * 16
    for name, parts in _SPANS.items():
        spans = [torch.tensor(part) for part in parts]
        counts = count_spans([{"span_id": part} for part in spans]) * _RANKS
        recorder.discrete(f"span_loss/{name}", counts.tolist(), tensor="counts", phase="data")
        step = GlobalBatch(counts, len(spans) * _RANKS)
        for kind, weights in _WEIGHTS.items():
            total = Fraction(0)
            for number, span in enumerate(spans):
                place = f"span_loss/{name}/{kind}/{number}"
                for phase, trained in (("training", step), ("evaluation", None)):
                    loss, tokens, report = span_loss(losses, _batch(span, trained), weights)
                    shares = loss_weights(_batch(span, trained), weights)
                    value = {
                        "loss": float(loss),
                        "tokens": int(tokens),
                        "report": {key: pair.tolist() for key, pair in report.items()},
                        "weights": shares.flatten().tolist(),
                    }
                    recorder.discrete(place, value, tensor=phase, phase="data")
                    if trained is not None:
                        total += Fraction(float(loss)) / int(tokens) / len(spans)
            expected = _closed_form(losses, spans, weights)
            recorder.invariant(
                f"span_loss/{name}/{kind}",
                "the micro-batches' shares are the weighted means of the global batch",
                abs(float(total - expected)),
                2.0**-20 * abs(float(expected)),
                phase="data",
                tensor="law",
            )


def _closed_form(
    losses: torch.Tensor, spans: list[torch.Tensor], weights: tuple[float, float]
) -> Fraction:
    """Each span's mean over both micro-batches, weighed, in exact numbers."""
    value = Fraction(0)
    for weight, number in zip(weights, (1, 2), strict=True):
        inside = [Fraction(x) for part in spans for x in losses[part == number].tolist()]
        if inside:
            value += Fraction(weight) * sum(inside) / len(inside)
    return value


def _batch(span: torch.Tensor, step: GlobalBatch | None) -> Batch:
    return Batch(
        tokens=span,
        labels=span,
        loss_mask=(span > 0).float(),
        span_id=span,
        position_ids=span,
        document_ids=None,
        sample_ids=span[:, 0],
        step=step,
    )
