"""Micro-batches on the device, the same on all tensor-parallel ranks, with their step's counts.

The loss divides by numbers of tokens of the whole global batch, which must be known before the
first backward pass. So the first `get_batch` of a step takes all its micro-batches from the
iterator, counts, and sums over the data-parallel ranks; the next ones hand out what was taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

Sample = dict[str, torch.Tensor]

# In the order in which they are broadcast; document_ids may be missing.
_FIELDS = (
    "tokens",
    "labels",
    "loss_mask",
    "span_id",
    "position_ids",
    "sample_id",
    "document_ids",
)


@dataclass(frozen=True)
class GlobalBatch:
    """What a micro-batch's loss must know of its step.

    Attributes:
        counts: int64 [2]: reasoning and final tokens, over micro-batches and data-parallel ranks.
        parts: micro-batches of all data-parallel ranks together.
    """

    counts: torch.Tensor
    parts: int


@dataclass(frozen=True)
class Batch:
    """One micro-batch on this rank's device.

    Attributes:
        tokens: int64 [b, s].
        labels: int64 [b, s].
        loss_mask: float32 [b, s].
        span_id: int64 [b, s]: 0 none, 1 reasoning, 2 final; of the label.
        position_ids: int64 [b, s].
        document_ids: int32 [b, s], or None when documents may attend to each other.
        sample_ids: int64 [b]: indices of the samples in the dataset.
        step: of the global batch; None in an evaluation.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    span_id: torch.Tensor
    position_ids: torch.Tensor
    document_ids: torch.Tensor | None
    sample_ids: torch.Tensor
    step: GlobalBatch | None


# Micro-batches taken ahead, by the iterator's id: virtual pipeline stages have one each. Held with
# the iterator, whose id is then no other's, until the last one is handed out.
_taken: dict[int, tuple[Any, deque[tuple[Sample, GlobalBatch]]]] = {}


def get_batch(data_iterator: Iterator[Sample] | None) -> Batch:
    """Reads the next micro-batch; collective over tensor-parallel and data-parallel groups.

    Args:
        data_iterator: yields collated samples of `SynthKDDataset`; None on tensor-parallel ranks
            but the first, which get theirs from it.

    Returns:
        The micro-batch, on the device of the rank.

    Raises:
        ValueError: the first tensor-parallel rank has no data.
    """
    from megatron.core import parallel_state

    sample: Sample | None = None
    step: GlobalBatch | None = None
    if data_iterator is not None:
        sample, step = _next(data_iterator)
    if parallel_state.get_tensor_model_parallel_world_size() > 1:
        sample, step = _broadcast(sample, step)
    if sample is None:
        raise ValueError("this rank has no data iterator, and no other rank to get batches from")
    return Batch(
        tokens=sample["tokens"],
        labels=sample["labels"],
        loss_mask=sample["loss_mask"],
        span_id=sample["span_id"],
        position_ids=sample["position_ids"],
        document_ids=sample.get("document_ids"),
        sample_ids=sample["sample_id"],
        step=step,
    )


def count_spans(samples: list[Sample]) -> torch.Tensor:
    """Reasoning and final tokens of micro-batches, int64 [2]."""
    spans = torch.stack([sample["span_id"] for sample in samples])
    return torch.stack([(spans == 1).sum(), (spans == 2).sum()])


def _next(data_iterator: Iterator[Sample]) -> tuple[Sample, GlobalBatch | None]:
    if not torch.is_grad_enabled():  # an evaluation divides nothing before it has seen everything
        return _to_device(next(data_iterator)), None
    place = id(data_iterator)
    if place not in _taken:
        _taken[place] = (data_iterator, deque(_take_step(data_iterator)))
    waiting = _taken[place][1]
    sample, step = waiting.popleft()
    if not waiting:
        del _taken[place]
    return _to_device(sample), step


def _take_step(data_iterator: Iterator[Sample]) -> list[tuple[Sample, GlobalBatch]]:
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import get_num_microbatches

    samples = [next(data_iterator) for _ in range(get_num_microbatches())]
    counts = count_spans(samples).cuda()
    ranks = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
    if ranks > 1:
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        torch.distributed.all_reduce(counts, group=group)
    step = GlobalBatch(counts, len(samples) * ranks)
    return [(sample, step) for sample in samples]


def _to_device(sample: Sample) -> Sample:
    return {name: tensor.cuda(non_blocking=True) for name, tensor in sample.items()}


def _broadcast(
    sample: Sample | None, step: GlobalBatch | None
) -> tuple[Sample, GlobalBatch | None]:
    """Sends a micro-batch from the first tensor-parallel rank to the others.

    The receivers keep nothing between calls, so that every pipeline schedule is served.
    """
    from megatron.core import parallel_state

    group = parallel_state.get_tensor_model_parallel_group()
    source = parallel_state.get_tensor_model_parallel_src_rank()
    if sample is None:
        header = torch.empty(6, dtype=torch.int64, device="cuda")
    else:
        like = sample["tokens"]
        wide = sample | {"sample_id": sample["sample_id"][:, None].expand_as(like)}
        fields = torch.stack([wide[name].long() for name in _FIELDS if name in wide])
        parts, counts = (step.parts, step.counts) if step else (0, fields.new_zeros(2))
        header = torch.cat([fields.new_tensor([*fields.shape, parts]), counts])
    torch.distributed.broadcast(header, source, group=group)
    if sample is None:
        *shape, parts = (int(n) for n in header[:4].tolist())
        fields = torch.empty(shape, dtype=torch.int64, device="cuda")
    torch.distributed.broadcast(fields, source, group=group)
    if sample is None:
        sample = dict(zip(_FIELDS, fields, strict=False))
        sample["loss_mask"] = sample["loss_mask"].float()
        sample["sample_id"] = sample["sample_id"][:, 0]
        if "document_ids" in sample:
            sample["document_ids"] = sample["document_ids"].int()
        step = GlobalBatch(header[4:], parts) if parts else None
    return sample, step
