"""Bugs in rendering, masks, spans and packing."""

from __future__ import annotations

import dataclasses
from typing import Any

from vpmoe.cases.faults.planting import (
    Planted,
    arguments,
    fault,
    keywords,
    patched,
    result,
)


def _batch(change: Any) -> Planted:
    return result("vpmoe.data.batch", "get_batch", change)


@fault(
    "return-token-missing",
    "tokenizer",
    "dataset",
    "a template that ends the answer with <|end|>",
    gpu=True,
)
def return_token_missing() -> Planted:
    """Answers end with <|end|>, not <|return|>."""
    return patched("vpmoe.tokenizer.special", "RETURN", lambda original: 200_007)


@fault("loss-mask-shifted", "masks", "batch", "a label-aligned mask shifted once more", gpu=True)
def loss_mask_shifted() -> Planted:
    """The loss mask is one position late."""

    def change(batch: Any) -> Any:
        return dataclasses.replace(batch, loss_mask=batch.loss_mask.roll(1, dims=-1))

    return _batch(change)


@fault("prompt-supervised", "masks", "batch", "a loss over the user's words too", gpu=True)
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


@fault("labels-not-shifted", "masks", "batch", "labels shifted twice, or not at all", gpu=True)
def labels_not_shifted() -> Planted:
    """Each token predicts itself."""
    return _batch(lambda batch: dataclasses.replace(batch, labels=batch.tokens))


@fault(
    "documents-not-separated",
    "packing",
    "batch",
    "reset_attention_mask that nothing reads (https://github.com/alex-hh/profam/issues/495)",
)
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
    "reset_position_ids that nothing reads (https://github.com/huggingface/nanoVLM/issues/201)",
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


@fault("channel-token-wrong", "tokenizer", "dataset", "a special id that is one off")
def channel_token_wrong() -> Planted:
    """Channels are announced by another reserved token."""
    return patched("vpmoe.tokenizer.special", "CHANNEL", lambda original: original - 1)


@fault("newline-after-message-token", "tokenizer", "dataset", "a template of another model")
def newline_after_message_token() -> Planted:
    """Every text begins with a new line."""

    def change(texts: Any) -> Any:
        return ("\n" + text for text in texts)

    return result("vpmoe.tokenizer.harmony", "_texts", change)


@fault("end-token-missing", "tokenizer", "dataset", "messages that run into each other")
def end_token_missing() -> Planted:
    """Messages but the last have no <|end|>."""

    def wrap(original: Any) -> Any:
        def render(self: Any, message: Any, function_tools: bool) -> list[int]:
            tokens = list(original(self, message, function_tools))
            return tokens if message.get("channel") == "final" else tokens[:-1]

        return render

    return patched("vpmoe.tokenizer.harmony", "HarmonyRenderer._render_message", wrap)


@fault("end-of-document-supervised", "masks", "dataset", "a loss on <|endoftext|>")
def end_of_document_supervised() -> Planted:
    """<|endoftext|> is trained too."""
    return arguments(
        "vpmoe.data.encode",
        "DocumentEncoder.__init__",
        lambda encoder, tokenizer, profile, *_: (encoder, tokenizer, profile, True),
    )


@fault("mask-not-label-aligned", "masks", "dataset", "a mask stored for the input, not the label")
def mask_not_label_aligned() -> Planted:
    """Masks and spans are stored a token late."""

    def change(documents: Any) -> Any:
        import numpy as np

        late = {name: np.roll(getattr(documents, name), 1) for name in ("loss_mask", "span")}
        return dataclasses.replace(documents, **late)

    return result("vpmoe.data.encode", "_assemble", change)


@fault(
    "return-token-unsupervised",
    "masks",
    "batch",
    "a model that never learns to stop (https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/4660)",
)
def return_token_unsupervised() -> Planted:
    """<|return|> is not trained."""

    def change(batch: Any) -> Any:
        from vpmoe.tokenizer import special

        kept = (batch.labels != special.RETURN).to(batch.loss_mask.dtype)
        span = batch.span_id * kept.to(batch.span_id.dtype)
        return dataclasses.replace(batch, loss_mask=batch.loss_mask * kept, span_id=span)

    return _batch(change)


@fault("shuffled-with-another-seed", "packing", "batch", "a seed that does not reach the loader")
def shuffled_with_another_seed() -> Planted:
    """Samples come in another order."""
    return keywords("vpmoe.data.dataset", "GPTDatasetConfig", random_seed=4321)


@fault("samples-not-shuffled", "packing", "batch", "an index that nobody shuffled")
def samples_not_shuffled() -> Planted:
    """Samples come in the order of the documents."""

    def change(built: Any) -> Any:
        import numpy as np

        document, sample, shuffle = built
        return document, sample, np.sort(shuffle)

    return result(
        "vpmoe.data.dataset", "SynthKDDataset._build_document_sample_shuffle_indices", change
    )


@fault(
    "document-boundary-one-late", "packing", "batch", "a reset behind the token that it belongs to"
)
def document_boundary_one_late() -> Planted:
    """A document's first token is counted to the one before."""

    def change(batch: Any) -> Any:
        import torch

        ids = batch.document_ids
        late = torch.cat((ids[:, :1], ids[:, :-1]), dim=1)
        return dataclasses.replace(batch, document_ids=late)

    return _batch(change)


@fault(
    "labels-two-ahead",
    "masks",
    "batch",
    "a shift in the data and another in the model "
    "(https://github.com/huggingface/transformers/pull/37830)",
)
def labels_two_ahead() -> Planted:
    """Each token predicts the one after the next."""
    return _batch(lambda batch: dataclasses.replace(batch, labels=batch.labels.roll(-1, dims=-1)))
