"""The language-model loss from hidden states, without the logits of all tokens in memory.

A chunk of tokens at a time goes through the output matrix, the softmax and, when the weight of
every token's loss is known by then, straight on to the gradients of the hidden states and of the
matrix, so that the chunk's logits are computed once and its memory is used again (as in Liger
Kernel, Hsu et al., 2024, and Cut Your Losses, Wijmans et al., 2024). Three matrix products then, as
when all logits are kept; without the weights the backward pass computes the logits again, a fourth.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.module import MegatronModule

from vpmoe.megatron.helpers import get_pg_rank, get_pg_size
from vpmoe.model.config import VpmoeConfig

# Logits of a chunk, in bytes: enough tokens that the products over them fill a GPU.
_CHUNK_BYTES = 7 << 28
_CHUNK_MULTIPLE = 1024
# Relative rounding of a product and a quotient of fp32 weights.
_TOLERANCE = 1e-5


class ChunkedCrossEntropy(MegatronModule):
    """Cross entropies of tokens under a vocabulary-parallel output layer.

    Args:
        config: vpMoE's configuration.
        pg_collection: process groups; `tp` is used.
    """

    def __init__(self, config: VpmoeConfig, pg_collection: ProcessGroupCollection) -> None:
        super().__init__(config=config)
        self.tp_group = pg_collection.tp

    def forward(
        self,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        loss_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes the losses.

        Args:
            hidden_states: [s, b, hidden], or this rank's part of s under sequence parallelism.
            weight: this rank's rows of the output matrix, [vocab/TP, hidden].
            labels: [b, s].
            loss_weights: see `chunked_cross_entropy`, [b, s].

        Returns:
            fp32 [b, s].
        """
        if self.config.sequence_parallel:
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=True, group=self.tp_group
            )
        else:
            hidden_states = copy_to_tensor_model_parallel_region(hidden_states, self.tp_group)
        length, batch, width = hidden_states.shape
        losses = chunked_cross_entropy(
            hidden_states.reshape(-1, width),
            weight,
            labels.t().reshape(-1),
            None if loss_weights is None else loss_weights.t().reshape(-1),
            self.tp_group,
        )
        return losses.view(length, batch).t().contiguous()


def chunked_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    loss_weights: torch.Tensor | None = None,
    group: torch.distributed.ProcessGroup | None = None,
) -> torch.Tensor:
    """Cross entropy of each token.

    Args:
        hidden: [n, hidden].
        weight: this rank's rows of the output matrix, [vocab/TP, hidden], in hidden's dtype.
        labels: [n] integers below vocab.
        loss_weights: [n], the gradient that each loss will receive but for one common factor, so
            that gradients are computed in the forward pass. A backward pass whose gradient is no
            multiple of it gives NaN gradients, which Megatron reports.
        group: tensor-parallel ranks, which share the vocabulary in order of rank.

    Returns:
        fp32 [n] (fp64 for fp64). hidden's gradient is this rank's part of a sum over the ranks.
    """
    losses: torch.Tensor = _ChunkedCrossEntropy.apply(hidden, weight, labels, loss_weights, group)
    return losses


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        loss_weights: torch.Tensor | None,
        group: torch.distributed.ProcessGroup | None,
    ) -> torch.Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        normaliser = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)
        losses = torch.empty_like(normaliser)
        at_once = loss_weights is not None and any(ctx.needs_input_grad[:2])
        gradients: tuple[torch.Tensor, ...] = ()
        if at_once:
            gradients = _gradient_buffers(hidden, weight)
        for chunk in _chunks(hidden, weight):
            logits = hidden[chunk] @ weight.t()
            normaliser[chunk], target = _statistics(logits, labels[chunk], group)
            losses[chunk] = normaliser[chunk] - target
            if at_once:
                assert loss_weights is not None
                _differentiate_(
                    logits, labels[chunk], normaliser[chunk], loss_weights[chunk], group
                )
                _accumulate_gradients(gradients, logits, hidden[chunk], weight, chunk)
            del logits
        if at_once:
            ctx.save_for_backward(*gradients, loss_weights)
        else:
            ctx.save_for_backward(hidden, weight, labels, normaliser)
        ctx.at_once, ctx.group, ctx.weight_dtype = at_once, group, weight.dtype
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        if ctx.at_once:
            d_hidden, d_weight, loss_weights = ctx.saved_tensors
            factor = _common_factor(grad, loss_weights)
            return (
                _scaled(d_hidden, factor, d_hidden.dtype),
                _scaled(d_weight, factor, ctx.weight_dtype),
                None,
                None,
                None,
            )
        hidden, weight, labels, normaliser = ctx.saved_tensors
        gradients = _gradient_buffers(hidden, weight)
        for chunk in _chunks(hidden, weight):
            logits = hidden[chunk] @ weight.t()
            _differentiate_(logits, labels[chunk], normaliser[chunk], grad[chunk], ctx.group)
            _accumulate_gradients(gradients, logits, hidden[chunk], weight, chunk)
            del logits
        d_hidden, d_weight = gradients
        return d_hidden, d_weight.to(weight.dtype), None, None, None


def _chunks(hidden: torch.Tensor, weight: torch.Tensor) -> list[slice]:
    """Chunks of tokens whose logits take at most `_CHUNK_BYTES`."""
    size = max(1, _CHUNK_BYTES // (weight.shape[0] * weight.element_size()))
    if size > _CHUNK_MULTIPLE:
        size -= size % _CHUNK_MULTIPLE
    return [slice(start, start + size) for start in range(0, hidden.shape[0], size)]


def _gradient_buffers(
    hidden: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of hidden, and of the weight in at least fp32, since chunks are added up in it.

    The first chunk fills the weight's, if there is one.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    make = torch.empty_like if len(hidden) else torch.zeros_like
    return torch.empty_like(hidden), make(weight, dtype=wide)


def _accumulate_gradients(
    gradients: tuple[torch.Tensor, ...],
    d_logits: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    chunk: slice,
) -> None:
    d_hidden, d_weight = gradients
    torch.mm(d_logits, weight, out=d_hidden[chunk])
    # An fp32 sum of bf16 products has to be asked for; a CPU cannot.
    wide: dict[str, Any] = {} if d_weight.dtype == d_logits.dtype else {"out_dtype": d_weight.dtype}
    if chunk.start == 0:
        torch.mm(d_logits.t(), hidden, **wide, out=d_weight)
    else:
        torch.addmm(d_weight, d_logits.t(), hidden, **wide, out=d_weight)


def _statistics(
    logits: torch.Tensor, labels: torch.Tensor, group: torch.distributed.ProcessGroup | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logarithm of the softmax's denominator and the label's logit, over the whole vocabulary.

    Args:
        logits: this rank's part [n, vocab/TP].
        labels: [n].
        group: the ranks that share the vocabulary.

    Returns:
        Both [n], fp32 (fp64 for fp64).
    """
    first = _first_token(logits, group)
    if logits.is_cuda:
        from vpmoe.model.cross_entropy_kernel import row_statistics

        high, total, target = row_statistics(logits, labels, first)
    else:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        high = wide.amax(dim=-1)
        total = (wide - high[:, None]).exp().sum(dim=-1)
        own = _own_columns(labels, first, logits.shape[1])
        target = wide.gather(1, own.clamp(min=0)[:, None]).squeeze(1).masked_fill(own < 0, 0.0)
    if group is not None and get_pg_size(group) > 1:
        highest = high.clone()
        torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX, group=group)
        sums = torch.stack((total * (high - highest).exp(), target))
        torch.distributed.all_reduce(sums, group=group)
        high, (total, target) = highest, sums
    return high + total.log(), target


def _differentiate_(
    logits: torch.Tensor,
    labels: torch.Tensor,
    normaliser: torch.Tensor,
    upstream: torch.Tensor,
    group: torch.distributed.ProcessGroup | None,
) -> None:
    """Overwrites logits with the gradient of sum(upstream * loss): (softmax - onehot) upstream."""
    first = _first_token(logits, group)
    if logits.is_cuda:
        from vpmoe.model.cross_entropy_kernel import differentiate_rows_

        differentiate_rows_(logits, labels, normaliser, upstream, first)
        return
    softmax = (logits.to(normaliser.dtype) - normaliser[:, None]).exp()
    own = _own_columns(labels, first, logits.shape[1])
    softmax[torch.arange(len(own)), own.clamp(min=0)] -= (own >= 0).to(softmax.dtype)
    logits.copy_(softmax * upstream.to(softmax.dtype)[:, None])


def _first_token(logits: torch.Tensor, group: torch.distributed.ProcessGroup | None) -> int:
    return 0 if group is None else get_pg_rank(group) * logits.shape[1]


def _own_columns(labels: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """The labels' columns on this rank, -1 for those of other ranks."""
    column = labels - first
    return torch.where((column >= 0) & (column < count), column, -1)


def _common_factor(grad: torch.Tensor, loss_weights: torch.Tensor) -> torch.Tensor:
    """The number that grad is times loss_weights, NaN when there is none; nothing waits for it."""
    weights = loss_weights.to(grad.dtype)
    largest = weights.abs().argmax(dim=0, keepdim=True)
    weight = weights.gather(0, largest)
    # Without any weight, any factor will do.
    factor = torch.where(weight == 0, 0.0, grad.gather(0, largest) / weight)
    expected = weights * factor
    same = ((grad - expected).abs() <= _TOLERANCE * expected.abs()).all()
    return torch.where(same, factor, torch.nan)


def _scaled(tensor: torch.Tensor, factor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """tensor * factor, rounded to dtype, in one pass."""
    if tensor.is_cuda:
        from vpmoe.model.cross_entropy_kernel import scaled

        return scaled(tensor, factor, dtype)
    return torch.mul(tensor, factor, out=torch.empty_like(tensor, dtype=dtype))
