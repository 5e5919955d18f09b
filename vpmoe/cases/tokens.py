"""Token ids of a run: from the shards to every micro-batch, and back to text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from validation.running.recorder import Recorder

# Micro-batches of up to so many elements are kept whole; of larger ones a digest of each sequence.
_WHOLE = 4096
_FIELDS = ("tokens", "labels", "loss_mask", "span_id", "position_ids", "document_ids")


def record_batch(recorder: Recorder, batch: Any, step: int, micro_batch: int) -> None:
    """Records a micro-batch of `vpmoe.data.batch` as it enters the model."""
    recorder.discrete(
        "batch",
        batch.sample_ids.tolist(),
        tensor="sample_ids",
        step=step,
        micro_batch=micro_batch,
        phase="data",
    )
    for field in _FIELDS:
        value = getattr(batch, field)
        if value is not None:
            recorder.discrete(
                "batch",
                ids_of(value),
                tensor=field,
                step=step,
                micro_batch=micro_batch,
                phase="data",
            )


def ids_of(value: torch.Tensor) -> list[Any]:
    """Lists the elements, or a digest of each sequence where that would be too many.

    Args:
        value: [b, s], whole numbers in any dtype.

    Returns:
        Integers, or BLAKE2b-128 of each row in hexadecimal.
    """
    if value.numel() <= _WHOLE:
        return [int(x) for x in value.flatten().tolist()]
    rows = value.detach().cpu().contiguous().numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in rows]


def record_documents(recorder: Recorder, folder: Path) -> None:
    """Records the dataset's tree: every shard and the digests of its documents, in order.

    Shards of the valid split, if there is one, are in `dataset/valid`.

    Args:
        recorder: of this process.
        folder: a dataset of `vpmoe data build`.
    """
    from vpmoe.data.dataset_files import read_manifest
    from vpmoe.data.documents import DocumentStore
    from vpmoe.data.trace import document_trace

    splits = read_manifest(folder)["splits"]
    for split, place in (("train", "dataset"), ("valid", "dataset/valid")):
        if not splits[split]["rows"]:
            continue
        for shard in document_trace(DocumentStore(folder, split)):
            name = f"{place}/{shard['shard']}"
            hashes = [document["hash"] for document in shard["documents"]]
            recorder.discrete(name, hashes, tensor="documents", phase="data")
            recorder.discrete(name, shard["hash"], tensor="tree", phase="data")


def decode(ids: Sequence[int]) -> str:
    """Text of token ids, control tokens by name; ids that are none are shown as numbers."""
    from vpmoe.tokenizer import O200kHarmonyTokenizer
    from vpmoe.tokenizer.asset import ensure_asset

    tokenizer = O200kHarmonyTokenizer(ensure_asset())
    try:
        return str(tokenizer.detokenize([int(i) for i in ids]))
    except (KeyError, ValueError, IndexError):
        return " ".join(map(str, ids))
