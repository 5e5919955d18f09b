"""Micro-batches: taken from the iterator a global batch ahead, and broadcast over tensor ranks.

The loss needs the token counts of the whole global batch before the first backward pass, so the
first `get_batch` of a step takes all its micro-batches and counts.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

_FIELDS = ("tokens", "labels", "position_ids", "span_id", "loss_mask")


@dataclass(frozen=True)
class Batch:
    """One micro-batch on this rank's device.

    Attributes:
        tokens: int64 [b, s].
        labels: int64 [b, s].
        loss_mask: float32 [b, s].
        span_id: int64 [b, s]: 0 none, 1 analysis, 2 final; about the label.
        position_ids: int64 [b, s].
        document_ids: int32 [b, s], or None when documents may attend to each other.
        counts: float32 [3]: supervised, analysis and final tokens of the whole global batch, over
            micro-batches and data-parallel ranks.
        num_microbatches: micro-batches of the global batch on this rank.
        data_parallel_size: ranks that `counts` are of.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    span_id: torch.Tensor
    position_ids: torch.Tensor
    document_ids: torch.Tensor | None
    counts: torch.Tensor
    num_microbatches: int
    data_parallel_size: int


# Batches taken ahead, per iterator; interleaved pipeline stages have an iterator each.
_ahead: weakref.WeakKeyDictionary[Any, deque[Batch]] = weakref.WeakKeyDictionary()
# Ranks without an iterator (other tensor ranks), by training or evaluation.
_ahead_without: dict[bool, deque[Batch]] = {True: deque(), False: deque()}


def get_batch(data_iterator: Iterator[dict[str, torch.Tensor]] | None) -> Batch:
    """The next micro-batch; collective over the tensor- and data-parallel groups.

    Args:
        data_iterator: yields collated samples of `SynthKDDataset`; None on tensor ranks but the
            first.
    """
    if data_iterator is None:
        waiting = _ahead_without[torch.is_grad_enabled()]
    else:
        waiting = _ahead.setdefault(data_iterator, deque())
    if not waiting:
        waiting.extend(_take_global_batch(data_iterator))
    return waiting.popleft()


def _take_global_batch(data_iterator: Iterator[dict[str, torch.Tensor]] | None) -> list[Batch]:
    from megatron.core import mpu

    number = _num_microbatches()
    samples = _receive(data_iterator, number)
    counts = count_tokens(samples)
    group = mpu.get_data_parallel_group(with_context_parallel=True)
    size = torch.distributed.get_world_size(group)
    if size > 1:
        torch.distributed.all_reduce(counts, group=group)
    return [make_batch(sample, counts, number, size) for sample in samples]


def make_batch(
    sample: dict[str, torch.Tensor],
    counts: torch.Tensor,
    num_microbatches: int,
    data_parallel_size: int,
) -> Batch:
    """A micro-batch from the collated fields of `SynthKDDataset` and the counts of its step."""
    return Batch(
        tokens=sample["tokens"],
        labels=sample["labels"],
        loss_mask=sample["loss_mask"],
        span_id=sample["span_id"],
        position_ids=sample["position_ids"],
        document_ids=sample.get("document_ids"),
        counts=counts,
        num_microbatches=num_microbatches,
        data_parallel_size=data_parallel_size,
    )


def count_tokens(samples: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Supervised, analysis and final tokens of micro-batches: float32 [3].

    float32 holds whole numbers up to 2^24; counts above are rounded by less than 6e-8.
    """
    counts = [
        torch.stack(
            [
                sample["loss_mask"].sum(dtype=torch.float64),
                _span_mask(sample, 1).sum(dtype=torch.float64),
                _span_mask(sample, 2).sum(dtype=torch.float64),
            ]
        )
        for sample in samples
    ]
    return torch.stack(counts).sum(0).float()


def _span_mask(sample: dict[str, torch.Tensor], span: int) -> torch.Tensor:
    return (sample["span_id"] == span) * sample["loss_mask"]


def _num_microbatches() -> int:
    from megatron.core.num_microbatches_calculator import get_num_microbatches
    from megatron.training import get_args

    if torch.is_grad_enabled():
        return int(get_num_microbatches())
    args = get_args()  # evaluation runs without gradients, in batches of its own size
    return int(
        args.eval_global_batch_size // (args.eval_micro_batch_size * args.data_parallel_size)
    )


def _receive(
    data_iterator: Iterator[dict[str, torch.Tensor]] | None, number: int
) -> list[dict[str, torch.Tensor]]:
    """Micro-batches on the device, the same on every tensor rank."""
    from megatron.core import mpu

    group = mpu.get_tensor_model_parallel_group()
    samples = []
    if data_iterator is not None:
        samples = [_to_device(next(data_iterator)) for _ in range(number)]
    if torch.distributed.get_world_size(group) == 1:
        return samples
    source = mpu.get_tensor_model_parallel_src_rank()
    shape = torch.zeros(4, dtype=torch.int64, device="cuda")
    packed = None
    if samples:
        packed = torch.stack([_pack(sample) for sample in samples])
        shape = torch.tensor(packed.shape, dtype=torch.int64, device="cuda")
    torch.distributed.broadcast(shape, source, group=group)
    if packed is None:
        packed = torch.empty(shape.tolist(), dtype=torch.int64, device="cuda")
    torch.distributed.broadcast(packed, source, group=group)
    return samples or [_unpack(fields) for fields in packed]


def _pack(sample: dict[str, torch.Tensor]) -> torch.Tensor:
    names = (*_FIELDS, "document_ids") if "document_ids" in sample else _FIELDS
    return torch.stack([sample[name].long() for name in names])


def _unpack(fields: torch.Tensor) -> dict[str, torch.Tensor]:
    sample = dict(zip(_FIELDS, fields, strict=False))
    sample["loss_mask"] = sample["loss_mask"].float()
    if len(fields) > len(_FIELDS):
        sample["document_ids"] = fields[len(_FIELDS)].int()
    return sample


def _to_device(sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cuda(non_blocking=True) for name, tensor in sample.items()}
