"""Records of packed samples: their order, their pieces of documents, positions, masks and spans."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig

from validation.running.recorder import Recorder
from vpmoe.cases.data.rendering import runs, spans_of_markup
from vpmoe.data.dataset import SynthKDDataset
from vpmoe.data.documents import DocumentStore
from vpmoe.data.trace import (
    document_trace,
    first_difference,
    planned_samples,
    sample_trace,
    training_trace,
)
from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer

_LENGTH = 64


@dataclass(frozen=True)
class _Packing:
    """How samples are cut from a split."""

    split: str = "train"
    samples: int | None = None  # None takes one epoch
    seed: int = 1234
    resets: bool = True
    whole: int = 0  # samples whose content is recorded, besides where it comes from


_PACKINGS = {
    "one_epoch": _Packing(whole=60),
    "another_seed": _Packing(seed=4321),
    "a_little_of_a_second_epoch": _Packing(samples=64),
    "most_of_a_third_epoch": _Packing(samples=170),
    "valid": _Packing("valid", 30, whole=20),
    "without_resets": _Packing(resets=False, whole=6),
}


def record_samples(
    recorder: Recorder, tokenizer: O200kHarmonyTokenizer, built: Path, folder: Path
) -> None:
    """Records the samples of every packing, and their laws.

    Args:
        recorder: of this process.
        tokenizer: of the dataset.
        built: the dataset, in two splits.
        folder: an empty one, for Megatron's cache of indices.
    """
    for name, packing in _PACKINGS.items():
        dataset = _dataset(tokenizer, built, packing)
        place = f"samples/{name}"
        recorder.discrete(place, len(dataset), tensor="samples", phase="data")
        for array in ("document_index", "sample_index", "shuffle_index"):
            value = getattr(dataset, array).tolist()
            recorder.discrete(place, value, tensor=array, phase="data")
        for index in range(len(dataset)):
            _record_sample(recorder, f"{place}/{index}", dataset, index, packing)
        _record_laws(recorder, place, tokenizer, dataset)
    packing = _PACKINGS["a_little_of_a_second_epoch"]
    expected = [_plain(sample) for sample in _samples(_dataset(tokenizer, built, packing))]
    for name, options in (
        ("written", {}),
        ("read", {}),
        ("mapped_late", {"fast_cache_load": True, "defer_npy_index_mmap": True}),
    ):
        cached = _dataset(tokenizer, built, packing, path_to_cache=str(folder), **options)
        found = [_plain(sample) for sample in _samples(cached, len(expected))]
        law = "samples of cached indices are the same"
        _law(recorder, "samples/cache", law, found == expected, name)


def record_trace(recorder: Recorder, tokenizer: O200kHarmonyTokenizer, built: Path) -> None:
    """Records the token trace, and what it says of traces that differ in one thing each."""
    packing = _Packing(samples=16)
    dataset = _dataset(tokenizer, built, packing)
    plan = planned_samples(
        steps=2, micro_batches=2, micro_batch_size=1, data_parallel_size=2, consumed=3
    )
    recorder.discrete("token_trace", plan, tensor="plan", phase="data")
    trace = training_trace(dataset, plan, first_step=5)
    for step in trace["steps"]:
        recorder.discrete("token_trace", step["hash"], tensor=f"step{step['step']}", phase="data")
    for shard in trace["shards"]:
        documents = [document["document"] for document in shard["documents"]]
        value = {"hash": shard["hash"], "documents": documents}
        recorder.discrete("token_trace", value, tensor=shard["shard"], phase="data")
    recorder.discrete("token_trace", trace["hash"], tensor="hash", phase="data")
    shards = [shard["hash"] for shard in document_trace(DocumentStore(built, "valid"))]
    recorder.discrete("token_trace", shards, tensor="valid", phase="data")
    sample = sample_trace(dataset, 3)
    recorder.discrete("token_trace", sample, tensor="sample", phase="data")
    same = training_trace(dataset, plan, first_step=5)
    _law(recorder, "token_trace", "it repeats", first_difference(trace, same) is None, "repeats")
    _marked(trace)
    for name, change in _CHANGES.items():
        other = copy.deepcopy(trace)
        change(other)
        _marked(other)
        if name == "damaged":
            other["hash"] = ""
        decode = tokenizer.detokenize if name in ("token", "shorter") else None
        found: Any
        try:
            found = first_difference(trace, other, decode)
        except ValueError as error:
            found = str(error)
        recorder.discrete(f"token_trace/{name}", found, tensor="difference", phase="data")


def _leaf(trace: Any) -> Any:
    return trace["steps"][1]["ranks"][1]["micro_batches"][0]["samples"][0]


def _in_leaf(name: str, place: int, value: int) -> Callable[[Any], None]:
    def change(trace: Any) -> None:
        _leaf(trace)[name][place] = value

    return change


def _shorter(trace: Any) -> None:
    for name in ("tokens", "loss_mask", "span"):
        _leaf(trace)[name] = _leaf(trace)[name][:-3]


def _longer(trace: Any) -> None:
    for name in ("tokens", "loss_mask", "span"):
        _leaf(trace)[name] = [*_leaf(trace)[name], 5]


_CHANGES: Mapping[str, Callable[[Any], Any]] = {
    "token": _in_leaf("tokens", 40, 5),
    "mask": _in_leaf("loss_mask", 3, 7),
    "span": _in_leaf("span", 60, 7),
    "shorter": _shorter,
    "longer": _longer,
    "pieces": lambda trace: _leaf(trace)["pieces"][0].update(offset=99_999),
    "sample": lambda trace: _leaf(trace).update(sample=77),
    "steps": lambda trace: trace["steps"].pop(),
    "ranks": lambda trace: trace["steps"][0]["ranks"].pop(),
    "document": lambda trace: trace["shards"][0]["documents"][1].update(row="0"),
    "shard": lambda trace: trace["shards"][1].update(rows=0),
    "shards": lambda trace: trace["shards"].pop(),
    "schema": lambda trace: trace.update(schema="token_trace_v0"),
    "split": lambda trace: trace.update(split="valid"),
    "damaged": lambda trace: None,
    "nothing": lambda trace: None,
}


def _marked(node: Any) -> Any:
    """A tree's content without hashes; gives every node in it the hash of its own."""
    if isinstance(node, list):
        return [_marked(item) for item in node]
    if not isinstance(node, dict):
        return node
    content = {name: _marked(item) for name, item in node.items() if name != "hash"}
    if "hash" in node:
        text = json.dumps(content, sort_keys=True).encode()
        node["hash"] = hashlib.blake2b(text, digest_size=8).hexdigest()
    return content


def _dataset(
    tokenizer: O200kHarmonyTokenizer, built: Path, packing: _Packing, **options: Any
) -> SynthKDDataset:
    config = GPTDatasetConfig(
        random_seed=packing.seed,
        sequence_length=_LENGTH,
        tokenizer=tokenizer,
        reset_position_ids=packing.resets,
        reset_attention_mask=packing.resets,
        eod_mask_loss=False,
        create_attention_mask=False,
        **options,
    )
    return SynthKDDataset(DocumentStore(built, packing.split), packing.samples, config)


def _samples(dataset: SynthKDDataset, count: int | None = None) -> list[dict[str, torch.Tensor]]:
    return [dataset[index] for index in range(len(dataset) if count is None else count)]


def _plain(sample: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name: value.tolist() for name, value in sample.items()}


def _record_sample(
    recorder: Recorder, place: str, dataset: SynthKDDataset, index: int, packing: _Packing
) -> None:
    pieces = [[piece.document, piece.offset, piece.length] for piece in dataset.pieces(index)]
    recorder.discrete(place, pieces, tensor="pieces", phase="data")
    if index >= packing.whole:
        return
    sample = dataset[index]
    kinds = {name: str(value.dtype).removeprefix("torch.") for name, value in sample.items()}
    recorder.discrete(place, kinds, tensor="kinds", phase="data")
    for name, value in sample.items():
        if name == "sample_id":
            found: Any = int(value)
        elif name == "labels":
            continue  # of which a law says that they are the next tokens
        elif name == "tokens":
            found = value.tolist()
        elif name == "position_ids":  # where they restart
            found = [n for n, place in enumerate(value.tolist()) if place == 0]
        else:
            found = runs(value.int())
        recorder.discrete(place, found, tensor=name, phase="data")


def _record_laws(
    recorder: Recorder, place: str, tokenizer: O200kHarmonyTokenizer, dataset: SynthKDDataset
) -> None:
    """What must hold of the samples of any order, from the documents and their order alone."""
    store: DocumentStore = dataset.dataset
    order = dataset.document_index.tolist()
    documents = {n: store.read(n) for n in set(order)}
    streams = {
        name: [int(value) for n in order for value in documents[n][array]]
        for name, array in (("tokens", "tokens"), ("mask", "lossmask"), ("span", "span"))
    }
    owners = [slot for slot, n in enumerate(order) for _ in documents[n]["tokens"]]
    starts = {slot: owners.index(slot) for slot in set(owners)}
    wrong: dict[str, list[int]] = {name: [] for name in _LAWS}
    for index, sample in enumerate(_samples(dataset)):
        first = int(dataset.shuffle_index[index]) * _LENGTH
        there = range(first, first + _LENGTH)
        expected: dict[str, list[int]] = {
            "tokens": [streams["tokens"][n] for n in there],
            "labels": [streams["tokens"][n + 1] for n in there],
            "loss_mask": [streams["mask"][n] for n in there],
            "span_id": [streams["span"][n] for n in there],
            "position_ids": list(range(_LENGTH)),
        }
        if dataset.config.reset_attention_mask:
            expected["document_ids"] = [owners[n] - owners[first] for n in there]
        if dataset.config.reset_position_ids:
            expected["position_ids"] = [n - max(first, starts[owners[n]]) for n in there]
        for name, values in expected.items():
            if sample[name].int().tolist() != values:
                wrong[name].append(index)
    for name, law in _LAWS.items():
        recorder.invariant(
            place, law, len(wrong[name]), 0, phase="data", tensor=f"law/{name}", of=wrong[name]
        )
    law = "every document is taken as often as any other"
    _law(recorder, place, law, len(set(Counter(order).values())) == 1, "documents")
    law = "every sample is dealt once"
    dealt = sorted(dataset.shuffle_index.tolist())
    _law(recorder, place, law, dealt == list(range(len(dealt))), "dealt")
    spans = [
        n
        for n, parts in documents.items()
        if parts["span"].tolist() != spans_of_markup(tokenizer, parts["tokens"].tolist())
    ]
    law = "spans are those that the markup gives, stored for the label"
    recorder.invariant(place, law, len(spans), 0, phase="data", tensor="law/markup", of=spans)


_LAWS = {
    "tokens": "a sample is a piece of the documents in their order",
    "labels": "a label is the next token, over the sample's end",
    "loss_mask": "masks are those of the documents",
    "span_id": "spans are those of the documents",
    "position_ids": "positions count from the document's beginning in the sample",
    "document_ids": "documents count from the sample's first",
}


def _law(recorder: Recorder, place: str, name: str, holds: bool, tensor: str) -> None:
    recorder.invariant(place, name, float(not holds), 0.0, phase="data", tensor=f"law/{tensor}")
