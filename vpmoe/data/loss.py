"""The loss: means over analysis and over final tokens of the whole global batch, weighted.

    L = w_r * mean(CE over span 1) + w_f * mean(CE over span 2)

Megatron divides a micro-batch's loss by one number and averages over micro-batches and
data-parallel ranks. A micro-batch's share of L is scaled up by what will be divided, so that the
sum over micro-batches and ranks is L, whatever their division.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from vpmoe.data.batch import Batch

Report = dict[str, torch.Tensor]
LossFunction = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, Report]]


def loss_function(batch: Batch) -> LossFunction:
    """Megatron's loss function of a micro-batch.

    Returns:
        A function of the per-token cross entropy [b, s] giving (loss, number of tokens, report).
        The report has, as [sum, count] of this micro-batch, `lm loss` over all supervised tokens,
        `reasoning loss` over span 1 and `final loss` over span 2.
    """
    from megatron.training import get_args

    args = get_args()
    weights = (args.kd_span_weight_reasoning, args.kd_span_weight_final)
    per_token = bool(args.calculate_per_token_loss)

    def compute(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Report]:
        return span_loss(losses, batch, weights, per_token)

    return compute


def span_loss(
    losses: torch.Tensor, batch: Batch, weights: tuple[float, float], per_token: bool
) -> tuple[torch.Tensor, torch.Tensor, Report]:
    """A micro-batch's share of the span-weighted loss, in Megatron's scaling.

    Args:
        losses: cross entropy per token, [b, s].
        batch: the micro-batch, with the counts of its global batch.
        weights: of the reasoning and of the final mean.
        per_token: Megatron's --calculate-per-token-loss: it divides the summed gradients by the
            summed number of tokens, instead of averaging.

    Returns:
        (loss, number of tokens int32, report); see `loss_function`. A span that the global batch
        has no token of contributes 0.
    """
    losses = losses.float()
    # where, not a product: a loss that is not a number outside the mask must not spread.
    masked = torch.where(batch.loss_mask > 0, losses * batch.loss_mask, 0.0)
    sums = [
        masked.sum(),
        torch.where(batch.span_id == 1, masked, 0.0).sum(),
        torch.where(batch.span_id == 2, masked, 0.0).sum(),
    ]
    totals = batch.counts.clamp(min=1)
    share = weights[0] * sums[1] / totals[1] + weights[1] * sums[2] / totals[2]
    supervised = batch.loss_mask.sum()
    if per_token:
        loss = share * totals[0]
        divisor = supervised.int()
    else:
        loss = share * (batch.num_microbatches * batch.data_parallel_size)
        divisor = torch.ones_like(supervised, dtype=torch.int32)
    own = torch.stack(
        [
            supervised,
            ((batch.span_id == 1) * batch.loss_mask).sum(),
            ((batch.span_id == 2) * batch.loss_mask).sum(),
        ]
    )
    # A span without tokens is reported as 0, not as 0 / 0.
    own = own + (batch.counts == 0)
    names = ("lm loss", "reasoning loss", "final loss")
    report = {
        name: torch.stack([total.detach(), count])
        for name, total, count in zip(names, sums, own, strict=True)
    }
    return loss, divisor, report
