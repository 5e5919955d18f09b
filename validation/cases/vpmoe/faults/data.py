"""Bugs in rendering, masks, spans and packing."""

from __future__ import annotations

import dataclasses
from typing import Any

from validation.cases.vpmoe.faults.planting import Planted, arguments, fault, patched, result


def _batch(change: Any) -> Planted:
    return result("vpmoe.data.batch", "get_batch", change)


@fault(
    "return-token-missing", "tokenizer", "dataset", "a template that ends the answer with <|end|>"
)
def return_token_missing() -> Planted:
    """Answers end with <|end|>, not <|return|>."""
    return patched("vpmoe.tokenizer.special", "RETURN", lambda original: 200_007)


@fault("loss-mask-shifted", "masks", "batch", "a label-aligned mask shifted once more")
def loss_mask_shifted() -> Planted:
    """The loss mask is one position late."""

    def change(batch: Any) -> Any:
        return dataclasses.replace(batch, loss_mask=batch.loss_mask.roll(1, dims=-1))

    return _batch(change)


@fault("prompt-supervised", "masks", "batch", "a loss over the user's words too")
def prompt_supervised() -> Planted:
    """Every token counts."""

    def change(batch: Any) -> Any:
        import torch

        return dataclasses.replace(batch, loss_mask=torch.ones_like(batch.loss_mask))

    return _batch(change)


@fault("spans-swapped", "spans", "batch", "span ids of another order than the loss's")
def spans_swapped() -> Planted:
    """Reasoning and final spans are exchanged."""

    def change(batch: Any) -> Any:
        span = batch.span_id
        return dataclasses.replace(batch, span_id=span.where(span == 0, 3 - span))

    return _batch(change)


@fault("labels-not-shifted", "masks", "batch", "labels shifted twice, or not at all")
def labels_not_shifted() -> Planted:
    """Each token predicts itself."""
    return _batch(lambda batch: dataclasses.replace(batch, labels=batch.tokens))


@fault("documents-not-separated", "packing", "batch", "reset_attention_mask that nothing reads")
def documents_not_separated() -> Planted:
    """Packed documents attend to each other."""

    def change(batch: Any) -> Any:
        import torch

        return dataclasses.replace(batch, document_ids=torch.zeros_like(batch.document_ids))

    return _batch(change)


@fault(
    "positions-not-reset",
    "packing",
    "batch",
    "reset_position_ids that nothing reads",
    steps=3,
    canary=False,
)
def positions_not_reset() -> Planted:
    """Positions run on over documents."""

    def change(batch: Any) -> Any:
        import torch

        length = batch.position_ids.shape[-1]
        positions = torch.arange(length).expand_as(batch.position_ids).contiguous()
        return dataclasses.replace(batch, position_ids=positions)

    return _batch(change)


@fault("sample-duplicated", "packing", "batch", "a sampler that deals every other index")
def sample_duplicated() -> Planted:
    """Odd samples are those before them."""
    return arguments(
        "vpmoe.data.dataset",
        "SynthKDDataset.__getitem__",
        lambda dataset, index: (dataset, index - index % 2),
    )
