"""The token trace: equal for equal training, and it finds the first difference."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.training.datasets.data_samplers import MegatronPretrainingSampler

from vpmoe.data.build import build_dataset
from vpmoe.data.dataset import SynthKDDataset
from vpmoe.data.documents import DocumentStore
from vpmoe.data.trace import (
    document_trace,
    first_difference,
    planned_samples,
    sample_trace,
    training_trace,
)
from vpmoe.tokenizer import O200kHarmonyTokenizer

PLAN = planned_samples(steps=3, micro_batches=2, micro_batch_size=2, data_parallel_size=2)


def _dataset(folder: Path, tokenizer: O200kHarmonyTokenizer, seed: int = 1) -> SynthKDDataset:
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=64,
        tokenizer=tokenizer,
        reset_position_ids=True,
        reset_attention_mask=True,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    return SynthKDDataset(DocumentStore(folder, "train"), 24, config)


@pytest.fixture
def trace(sample_dataset: Path, tokenizer: O200kHarmonyTokenizer) -> dict[str, Any]:
    """The trace of three steps on two ranks."""
    return training_trace(_dataset(sample_dataset, tokenizer), PLAN)


@pytest.mark.parametrize(("ranks", "parts", "size"), [(1, 1, 1), (1, 4, 2), (2, 2, 3), (4, 1, 2)])
def test_the_plan_is_megatrons_sampler(ranks: int, parts: int, size: int) -> None:
    plan = planned_samples(
        steps=3, micro_batches=parts, micro_batch_size=size, data_parallel_size=ranks, consumed=24
    )
    for rank in range(ranks):
        sampler = iter(MegatronPretrainingSampler(1000, 24, size, rank, ranks))
        for step in plan:
            assert step[rank] == [next(sampler) for _ in range(parts)]


def test_it_is_plain_data_and_repeats(
    trace: dict[str, Any], sample_dataset: Path, tokenizer: O200kHarmonyTokenizer
) -> None:
    again = training_trace(_dataset(sample_dataset, tokenizer), PLAN)
    assert json.loads(json.dumps(trace)) == trace == again
    assert first_difference(trace, again) is None


def test_it_leads_from_the_step_to_the_conversation(
    trace: dict[str, Any], sample_dataset: Path, tokenizer: O200kHarmonyTokenizer
) -> None:
    dataset = _dataset(sample_dataset, tokenizer)
    sample = trace["steps"][1]["ranks"][1]["micro_batches"][0]["samples"][1]
    assert sample["sample"] == 8 + 2 + 1
    batch = dataset[sample["sample"]]
    assert sample["tokens"] == [*batch["tokens"].tolist(), batch["labels"][-1].item()]
    assert sample["span"][:-1] == batch["span_id"].tolist()
    piece = sample["pieces"][0]
    (shard,) = (s for s in trace["shards"] if s["shard"] == piece["shard"])
    (document,) = (d for d in shard["documents"] if d["document"] == piece["document"])
    assert document["length"] >= piece["offset"] + piece["length"]
    assert len(document["row"]) == 32


def test_without_a_list_all_documents_are_shown(sample_dataset: Path) -> None:
    store = DocumentStore(sample_dataset, "train")
    shards = document_trace(store)
    assert sum(len(shard["documents"]) for shard in shards) == len(store)
    assert [shard["rows"] for shard in shards] == [len(shard["documents"]) for shard in shards]


def test_another_seed_first_differs_in_the_first_sample(
    trace: dict[str, Any], sample_dataset: Path, tokenizer: O200kHarmonyTokenizer
) -> None:
    other = training_trace(_dataset(sample_dataset, tokenizer, seed=2), PLAN)
    found = first_difference(trace, other)
    assert found is not None
    assert (found["step"], found["rank"], found["micro_batch"], found["slot"]) == (1, 0, 0, 0)


def test_one_changed_token_is_found_and_shown_decoded(
    conversations: Path,
    vocabulary: Path,
    tmp_path: Path,
    sample_dataset: Path,
    tokenizer: O200kHarmonyTokenizer,
    trace: dict[str, Any],
) -> None:
    """A word of one answer changes: same ids but one, and the trace says where it is trained."""
    step, rank, part, slot = 2, 0, 1, 1
    leaf = trace["steps"][step - 1]["ranks"][rank]["micro_batches"][part]["samples"][slot]
    original = DocumentStore(sample_dataset, "train")
    texts = _texts(original, tokenizer)
    piece = max(leaf["pieces"], key=lambda p: p["length"])
    document = next(
        n for n in range(len(original)) if original.locate(n) == (piece["shard"], piece["document"])
    )
    lines = conversations.read_text(encoding="utf-8").splitlines()
    (at,) = (
        i
        for i, line in enumerate(lines)
        if json.loads(line)["query"] in texts[document]
        and json.loads(line)["synthetic_answer"] in texts[document]
        and json.loads(line)["synthetic_reasoning"] in texts[document]
    )
    row = json.loads(lines[at])
    query = tokenizer.tokenize(row["query"])
    # Replace one token of the query that the sample holds by another token.
    whole = original.read(document)["tokens"].tolist()
    start = _find(whole, query)
    index = next(
        i
        for i in range(len(query))
        if piece["offset"] <= start + i < piece["offset"] + piece["length"]
        and _replace(tokenizer, query, i) is not None
    )
    row["query"] = _replace(tokenizer, query, index)
    lines[at] = json.dumps(row, ensure_ascii=False)
    changed = tmp_path / "rows.jsonl"
    changed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    build_dataset(
        [changed],
        tmp_path / "data",
        valid_fraction="0.1",
        rows_per_shard=100,
        vocabulary=vocabulary,
    )
    other = training_trace(_dataset(tmp_path / "data", tokenizer), PLAN)
    found = first_difference(trace, other, decode=tokenizer.detokenize)
    assert found is not None
    assert (found["shard"], found["document"]) == (piece["shard"], piece["document"])
    assert found["document_offset"] == start + index
    assert (found["what"], found["expected"]) == ("tokens", query[index])
    assert found["expected_text"] != found["actual_text"]
    assert (found["step"], found["rank"], found["micro_batch"], found["slot"]) == (
        step,
        rank,
        part,
        slot,
    )


def _texts(store: DocumentStore, tokenizer: O200kHarmonyTokenizer) -> list[str]:
    return [tokenizer.detokenize(store.read(n)["tokens"]) for n in range(len(store))]


def _find(whole: list[int], part: list[int]) -> int:
    return next(i for i in range(len(whole)) if whole[i : i + len(part)] == part)


def _replace(tokenizer: O200kHarmonyTokenizer, ids: list[int], index: int) -> str | None:
    """The text with another token at the index, if it encodes to just that."""
    wanted = [*ids[:index], tokenizer.tokenize(" zebra")[0], *ids[index + 1 :]]
    text = tokenizer.detokenize(wanted)
    return text if tokenizer.tokenize(text) == wanted else None


def test_masks_shards_and_sizes_are_told_apart(trace: dict[str, Any]) -> None:
    changed = copy.deepcopy(trace)
    sample = changed["steps"][2]["ranks"][1]["micro_batches"][1]["samples"][0]
    sample["span"][5] = (sample["span"][5] + 1) % 3
    _rehash(changed, 2, 1, 1, 0)
    found = first_difference(trace, changed)
    assert found is not None
    assert (found["step"], found["rank"], found["micro_batch"], found["slot"]) == (3, 1, 1, 0)
    assert (found["what"], found["offset"]) == ("span", 5)

    shorter = copy.deepcopy(trace)
    del shorter["steps"][2]
    shorter["hash"] = "00"
    found = first_difference(trace, shorter)
    assert found is not None
    assert (found["what"], found["expected"], found["actual"]) == ("number of steps", 3, 2)

    renamed = copy.deepcopy(trace)
    renamed["shards"][1]["documents"][0] |= {"row": "00", "hash": "00"}
    renamed["shards"][1]["hash"] = renamed["hash"] = "00"
    found = first_difference(trace, renamed)
    assert found is not None
    assert (found["what"], found["shard"]) == ("document", "shard_01")

    damaged = copy.deepcopy(trace)
    damaged["hash"] = "00"
    with pytest.raises(ValueError, match="damaged"):
        first_difference(trace, damaged)


def _rehash(trace: dict[str, Any], step: int, rank: int, part: int, slot: int) -> None:
    nodes = [trace, trace["steps"][step]]
    nodes.append(nodes[-1]["ranks"][rank])
    nodes.append(nodes[-1]["micro_batches"][part])
    nodes.append(nodes[-1]["samples"][slot])
    for node in nodes:
        node["hash"] = "00"


def test_hashes_cover_order_and_content(
    sample_dataset: Path, tokenizer: O200kHarmonyTokenizer
) -> None:
    dataset = _dataset(sample_dataset, tokenizer)
    leaves = {sample_trace(dataset, index)["hash"] for index in range(len(dataset))}
    assert len(leaves) == len(dataset)
    swapped = [[[[1, 0]]]]
    assert training_trace(dataset, swapped)["hash"] != training_trace(dataset, [[[[0, 1]]]])["hash"]
