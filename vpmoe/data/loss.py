"""The loss: weighted means over the reasoning and the final tokens of the whole global batch.

    L = W_r mean(CE of reasoning tokens) + W_f mean(CE of final tokens)

Data without spans has one, of all its tokens, whose mean is the loss.

Megatron divides what a micro-batch returns by one number of tokens and averages over micro-batches
and data-parallel ranks, which would weigh a token by how many others its micro-batch happens to
hold. Here a micro-batch returns its share of L, times all that Megatron will divide it by.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from vpmoe.data.batch import Batch

Report = dict[str, torch.Tensor]
LossFunction = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, Report]]

_SPANS = {"reasoning loss": 1, "final loss": 2}


def loss_function(batch: Batch) -> LossFunction:
    """Builds Megatron's `loss_func` of a micro-batch.

    Args:
        batch: the micro-batch.

    Returns:
        A function of the cross entropies per token [b, s] that gives Megatron's (loss, number of
        tokens, report). The report has `lm loss` over all supervised tokens, `reasoning loss` and
        `final loss`, each as [sum, count] of this micro-batch: plain means, without weights. Data
        without spans has `lm loss` alone.
    """
    from megatron.training import get_args

    from vpmoe.megatron.helpers import get_rerun_state_machine

    args = get_args()
    weights = span_weights(args)
    has_spans = args.synth_kd_data is not None

    def compute(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Report]:
        loss, tokens, report = span_loss(losses, batch, weights)
        if args.check_for_nan_in_loss_and_grad:
            get_rerun_state_machine().validate_result(
                result=report["lm loss"][0],
                rejection_func=lambda total: ~torch.isfinite(total),
                message="found a loss that is not finite in a local forward pass",
                tolerance=0.0,  # forward passes are deterministic
                fatal=True,
            )
        if not has_spans:
            report = {"lm loss": report["lm loss"]}
        return loss, tokens, report

    return compute


def span_weights(args: argparse.Namespace) -> tuple[float, float]:
    """Weights of the spans 1 and 2; data without spans has all its tokens in span 1."""
    if args.synth_kd_data is None:
        return 1.0, 0.0
    return args.kd_span_weight_reasoning, args.kd_span_weight_final


def span_loss(
    losses: torch.Tensor, batch: Batch, weights: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor, Report]:
    """A micro-batch's share of L, times what Megatron divides it by.

    With --calculate-per-token-loss Megatron divides summed gradients by the summed number of
    tokens, without it by the micro-batch's number of tokens, by micro-batches and by ranks. All
    micro-batches are of one size, so reporting every token as one, supervised or not, makes the
    two the same, and gives routers' auxiliary losses their full weight in both.

    Args:
        losses: cross entropy per token, [b, s].
        batch: the micro-batch.
        weights: of the reasoning mean and of the final mean.

    Returns:
        (loss, number of tokens int32, report), see `loss_function`. A span that the global batch
        has no token of contributes 0, and so is reported. In an evaluation the loss is the
        micro-batch's own.
    """
    losses = losses.float()
    sums, counts = [], []
    for span in _SPANS.values():
        inside = batch.span_id == span
        # A selection, not a product: what is not finite outside must not spread.
        sums.append(torch.where(inside, losses, 0.0).sum())
        counts.append(inside.sum())
    divisors, parts = _divisors(batch, counts)
    means = torch.stack(sums) / divisors.clamp(min=1)
    share = weights[0] * means[0] + weights[1] * means[1]
    tokens = losses.numel()
    report = {
        "lm loss": _report(
            torch.where(batch.loss_mask > 0, losses, 0.0).sum(), batch.loss_mask.sum()
        )
    }
    for name, total, count in zip(_SPANS, sums, counts, strict=True):
        report[name] = _report(total, count)
    return (
        share * (tokens * parts),
        torch.full((), tokens, dtype=torch.int32, device=losses.device),
        report,
    )


def loss_weights(batch: Batch, weights: tuple[float, float]) -> torch.Tensor:
    """Computes the gradient of `span_loss` in each token's cross entropy.

    Args:
        batch: the micro-batch.
        weights: of the reasoning mean and of the final mean.

    Returns:
        fp32 [b, s].
    """
    inside = [batch.span_id == span for span in _SPANS.values()]
    divisors, parts = _divisors(batch, [selected.sum() for selected in inside])
    scale = batch.span_id.numel() * parts / divisors.clamp(min=1).float()
    result = torch.zeros(batch.span_id.shape, dtype=torch.float32, device=batch.span_id.device)
    for selected, weight, each in zip(inside, weights, scale, strict=True):
        result = torch.where(selected, weight * each, result)
    return result


def _divisors(batch: Batch, counts: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
    """The spans' numbers of tokens in the global batch, and its micro-batches.

    In an evaluation those of the micro-batch alone, which are `counts`.
    """
    if batch.step is None:
        return torch.stack(counts), 1
    return batch.step.counts, batch.step.parts


def _report(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """[sum, count] for Megatron to add up and divide; 0, not 0 / 0, when nothing is counted."""
    smallest = torch.finfo(torch.float32).tiny
    return torch.stack([total.detach(), count.float().clamp(min=smallest)])
