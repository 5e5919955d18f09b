"""Where every trained token comes from: conversation, document, shard, packed sample, rank, step.

The trace is plain data (dicts, lists, numbers, texts) and a hash tree: a node's `hash` covers its
own content and its children's hashes, so that equal roots mean equal token ids, masks, spans and
order, and the first difference is found from the root down:

    training -> step -> rank -> micro-batch -> sample (ids, pieces of documents)
    training -> shard -> document (row, tokens, masks, spans)

    dataset = SynthKDDataset(DocumentStore(folder, "train"), 120, config)
    plan = planned_samples(steps=30, micro_batches=2, micro_batch_size=2, data_parallel_size=1)
    trace = training_trace(dataset, plan)
    first_difference(golden, trace, decode=tokenizer.detokenize)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from vpmoe.data.dataset import SynthKDDataset
    from vpmoe.data.documents import DocumentStore

SCHEMA = "token_trace_v1"
_CONTEXT = 8  # tokens shown around a difference
_IDS = ("tokens", "loss_mask", "span")

# Samples of one step: of a rank, of its micro-batches.
Plan = Sequence[Sequence[Sequence[Sequence[int]]]]
Node = dict[str, Any]


def planned_samples(
    *,
    steps: int,
    micro_batches: int,
    micro_batch_size: int,
    data_parallel_size: int,
    consumed: int = 0,
) -> Plan:
    """Which samples each rank gets in each step, as Megatron's `single` sampler deals them.

    Args:
        steps: how many.
        micro_batches: of a step on one rank.
        micro_batch_size: samples of a micro-batch.
        data_parallel_size: ranks.
        consumed: samples of earlier steps.

    Returns:
        [step][rank][micro-batch] -> indices of samples.
    """
    return [
        [
            [
                [
                    consumed
                    + ((step * micro_batches + part) * data_parallel_size + rank) * micro_batch_size
                    + sample
                    for sample in range(micro_batch_size)
                ]
                for part in range(micro_batches)
            ]
            for rank in range(data_parallel_size)
        ]
        for step in range(steps)
    ]


def training_trace(dataset: SynthKDDataset, plan: Plan, first_step: int = 1) -> Node:
    """Builds the trace of a training.

    Args:
        dataset: the samples.
        plan: what each rank got, [step][rank][micro-batch] -> indices; from `planned_samples`, or
            `Batch.sample_ids` of a run.
        first_step: number of the first step.

    Returns:
        The root of the tree.
    """
    steps = []
    for step, ranks in enumerate(plan, first_step):
        nodes = []
        for rank, parts in enumerate(ranks):
            batches = [
                _node({}, "samples", [sample_trace(dataset, index) for index in part])
                for part in parts
            ]
            nodes.append(_node({"rank": rank}, "micro_batches", batches))
        steps.append(_node({"step": step}, "ranks", nodes))
    store = dataset.dataset
    used = {piece.document for index in _indices(plan) for piece in dataset.pieces(index)}
    shards = document_trace(store, sorted(used))
    head = {"schema": SCHEMA, "split": store.split}
    return _node(head | {"shards": shards}, "steps", steps)


def document_trace(store: DocumentStore, listed: Iterable[int] | None = None) -> list[Node]:
    """Builds the nodes of shards, each with the digest of all its document records.

    Args:
        store: the documents.
        listed: the documents to list, ascending; all when None.

    Returns:
        A node for each shard, with one for each listed document.
    """
    leaves: dict[str, list[Node]] = {shard["shard"]: [] for shard in store.shards()}
    for document in range(len(store)) if listed is None else listed:
        shard, number = store.locate(document)
        leaves[shard].append(_node({"document": number} | store.record(document), "", ()))
    return [_node(shard, "documents", leaves[shard["shard"]]) for shard in store.shards()]


def sample_trace(dataset: SynthKDDataset, index: int) -> Node:
    """A packed sample: its ids, masks and spans, and the pieces of documents it is made of.

    Args:
        dataset: the samples.
        index: which one.

    Returns:
        `sample`; `pieces` of `shard`, `document` (in the shard), `offset` and `length`; `tokens`,
        `loss_mask` and `span` of its s + 1 tokens.
    """
    store: DocumentStore = dataset.dataset
    pieces, arrays = [], []
    for piece in dataset.pieces(index):
        shard, number = store.locate(piece.document)
        pieces.append(
            {"shard": shard, "document": number, "offset": piece.offset, "length": piece.length}
        )
        arrays.append(store.read(piece.document, piece.offset, piece.length))
    content = {
        name: np.concatenate([part[array] for part in arrays]).tolist()
        for name, array in zip(_IDS, ("tokens", "lossmask", "span"), strict=True)
    }
    return _node({"sample": int(index), "pieces": pieces} | content, "", ())


def first_difference(
    expected: Mapping[str, Any],
    actual: Mapping[str, Any],
    decode: Callable[[Sequence[int]], str] | None = None,
) -> dict[str, Any] | None:
    """Where two traces first differ, in the order of training.

    Args:
        expected: a trace.
        actual: another one.
        decode: ids to text, for `expected_text` and `actual_text` around a token.

    Returns:
        None when the roots are equal. Else `step`, `rank`, `micro_batch`, `slot` (sample in the
        micro-batch), `what` (`tokens`, `loss_mask`, `span`, `pieces`, `sample`, or where no
        sample differs `document`, `shard`, `schema`, `split` or the number of a level), `offset` in
        the sample, `expected`, `actual`, and the `shard`, `document` and `document_offset` that the
        expected token is of.

    Raises:
        ValueError: a trace whose hashes are not those of its content.
    """
    if expected["hash"] == actual["hash"]:
        return None
    place: dict[str, Any] = {"step": None, "rank": None, "micro_batch": None, "slot": None}
    found = _differing_sample(expected, actual, place)
    if found is None:
        for what in ("schema", "split"):
            if expected[what] != actual[what]:
                return _difference(place, what, expected[what], actual[what])
        return _differing_document(expected["shards"], actual["shards"], place)
    if isinstance(found, dict):
        return found
    return _within_sample(place, *found, decode)


def _differing_document(
    expected: Sequence[Node], actual: Sequence[Node], place: Mapping[str, Any]
) -> dict[str, Any]:
    """The first shard that differs, and of its listed documents the first."""
    for a, b in zip(expected, actual, strict=False):
        if a["hash"] == b["hash"]:
            continue
        pairs = zip(a["documents"], b["documents"], strict=False)
        documents = next(((x, y) for x, y in pairs if x != y), None)
        if documents is None:
            return _difference(place, "shard", *({**n, "documents": None} for n in (a, b)))
        return _difference(place, "document", *documents) | {"shard": a["shard"]}
    if len(expected) != len(actual):
        return _difference(place, "number of shards", len(expected), len(actual))
    raise ValueError("the traces' hashes differ and their content does not: one is damaged")


def _differing_sample(
    expected: Mapping[str, Any], actual: Mapping[str, Any], place: dict[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]] | dict[str, Any] | None:
    """Goes down to the first pair of samples that differ; fills in the place."""
    for level, name in (
        ("steps", "step"),
        ("ranks", "rank"),
        ("micro_batches", "micro_batch"),
        ("samples", "slot"),
    ):
        pairs = zip(expected[level], actual[level], strict=False)
        pair = next(((n, a, b) for n, (a, b) in enumerate(pairs) if a["hash"] != b["hash"]), None)
        if pair is None:
            sizes = len(expected[level]), len(actual[level])
            if sizes[0] != sizes[1]:
                return _difference(place, f"number of {level}", *sizes)
            return None
        number, expected, actual = pair
        place[name] = expected.get(name, number)
    return expected, actual


def _within_sample(
    place: Mapping[str, Any],
    expected: Mapping[str, Any],
    actual: Mapping[str, Any],
    decode: Callable[[Sequence[int]], str] | None,
) -> dict[str, Any]:
    for what in _IDS:
        a, b = expected[what], actual[what]
        offset = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        if offset is None and len(a) != len(b):
            offset = min(len(a), len(b))
        if offset is None:
            continue
        found = _difference(place, what, *((v[offset : offset + 1] or [None])[0] for v in (a, b)))
        found["offset"] = offset
        found |= _origin(expected["pieces"], offset)
        if decode is not None:
            near = slice(max(0, offset - _CONTEXT), offset + _CONTEXT + 1)
            found["expected_text"] = decode(expected["tokens"][near])
            found["actual_text"] = decode(actual["tokens"][near])
        return found
    what = "pieces" if expected["pieces"] != actual["pieces"] else "sample"
    return _difference(place, what, expected[what], actual[what])


def _origin(pieces: Sequence[Mapping[str, Any]], offset: int) -> dict[str, Any]:
    for piece in pieces:
        if offset < piece["length"]:
            return {
                "shard": piece["shard"],
                "document": piece["document"],
                "document_offset": piece["offset"] + offset,
            }
        offset -= piece["length"]
    return {}


def _difference(place: Mapping[str, Any], what: str, expected: Any, actual: Any) -> dict[str, Any]:
    return dict(place) | {"what": what, "offset": None, "expected": expected, "actual": actual}


def _indices(plan: Plan) -> Iterator[int]:
    return (index for step in plan for rank in step for part in rank for index in part)


def _node(content: Mapping[str, Any], name: str, children: Sequence[Node]) -> Node:
    """A node with its hash: BLAKE2b-16 of its content and of its children's hashes."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for child in children:
        digest.update(bytes.fromhex(child["hash"]))
    return dict(content) | ({name: list(children)} if name else {}) | {"hash": digest.hexdigest()}
