"""Packed samples equal Megatron's GPTDataset; resets are real; damage is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split

from vpmoe.data.build import build_dataset
from vpmoe.data.dataset import SynthKDDataset
from vpmoe.data.documents import DocumentStore, verify_files
from vpmoe.data.errors import CorruptDatasetError, DataError
from vpmoe.tokenizer import O200kHarmonyTokenizer

SEED, LENGTH = 1234, 64


@pytest.fixture(scope="module")
def one_shard(
    conversations: Path, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """All train rows of `sample_dataset` in one shard."""
    folder = tmp_path_factory.mktemp("one") / "data"
    build_dataset([conversations], folder, valid_fraction="0.1", vocabulary=vocabulary)
    return folder


def _config(tokenizer: O200kHarmonyTokenizer, **more: Any) -> GPTDatasetConfig:
    flags = {"reset_position_ids": True, "reset_attention_mask": True, "random_seed": SEED} | more
    return GPTDatasetConfig(
        sequence_length=LENGTH,
        tokenizer=tokenizer,
        eod_mask_loss=False,
        **({"create_attention_mask": False} | flags),
    )


def _samples(
    folder: Path, tokenizer: O200kHarmonyTokenizer, count: int | None = None, **more: Any
) -> SynthKDDataset:
    return SynthKDDataset(DocumentStore(folder, "train"), count, _config(tokenizer, **more))


def test_the_order_follows_the_seed_and_nothing_else(
    one_shard: Path, tokenizer: O200kHarmonyTokenizer
) -> None:
    one, again, other = (
        [dataset.pieces(index) for index in range(len(dataset))]
        for dataset in (_samples(one_shard, tokenizer, 40, random_seed=s) for s in (1, 1, 2))
    )
    assert one == again
    assert sum(a != b for a, b in zip(one, other, strict=False)) > len(one) / 2


@pytest.mark.parametrize("count", [None, 5, 1000, 1300])
def test_samples_equal_megatrons(
    one_shard: Path, tokenizer: O200kHarmonyTokenizer, count: int | None
) -> None:
    indexed = IndexedDataset(str(one_shard / "train" / "shard_00_tokens"))
    config = _config(tokenizer, create_attention_mask=True)
    documents = np.arange(len(indexed), dtype=np.int32)
    theirs = GPTDataset(indexed, None, documents, count, Split.train, config)
    ours = _samples(one_shard, tokenizer, count)
    assert len(ours) == len(theirs) > 300 * (count is None)
    several_documents = 0
    for index in range(len(ours)):
        mine, other = ours[index], theirs[index]
        for name in ("tokens", "labels", "position_ids"):
            assert mine[name].dtype == torch.int64
            assert torch.equal(mine[name], other[name]), (index, name)
        same = mine["document_ids"][:, None] == mine["document_ids"][None, :]
        allowed = same & torch.ones(LENGTH, LENGTH).tril().bool()
        assert torch.equal(allowed, ~other["attention_mask"][0])
        several_documents += int(mine["document_ids"][-1] > 0)
    assert several_documents > len(ours) // 2


def test_shards_do_not_change_samples(
    one_shard: Path, sample_dataset: Path, tokenizer: O200kHarmonyTokenizer
) -> None:
    one, many = _samples(one_shard, tokenizer), _samples(sample_dataset, tokenizer)
    assert len({many.dataset.locate(n)[0] for n in range(len(many.dataset))}) == 4
    assert len(one) == len(many)
    for index in range(len(one)):
        a, b = one[index], many[index]
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_masks_are_of_the_labels(sample_dataset: Path, tokenizer: O200kHarmonyTokenizer) -> None:
    """Read from the Harmony markup alone: supervised are the tokens of assistant messages."""
    dataset = _samples(sample_dataset, tokenizer)
    start, end, analysis = 200006, 200007, tokenizer.tokenize("analysis")[0]
    returned, eod, (assistant,) = 200002, tokenizer.eod, tokenizer.tokenize("assistant")
    for index in range(0, len(dataset), 7):
        sample = dataset[index]
        for i, piece in enumerate(dataset.pieces(index)):
            whole = dataset.dataset.read(piece.document)["tokens"].tolist()
            span = 0
            for position, label in enumerate(whole):
                if label == start and whole[position + 1] == assistant:
                    span = 1 if whole[position + 3] == analysis else 2
                at = position - 1 - piece.offset  # of the input that predicts it
                if 0 <= at < piece.length:
                    inside = (sample["document_ids"] == i).nonzero()[:, 0]
                    if at < len(inside):
                        assert sample["labels"][inside[at]] == label
                        assert sample["span_id"][inside[at]] == span
                        assert sample["loss_mask"][inside[at]] == (span > 0)
                if label in (end, returned):
                    span = 0
            assert whole[-1] == eod


def test_eod_label_and_next_document_are_unsupervised(
    sample_dataset: Path, tokenizer: O200kHarmonyTokenizer
) -> None:
    dataset = _samples(sample_dataset, tokenizer)
    for index in range(len(dataset)):
        sample = dataset[index]
        crossing = (sample["tokens"] == tokenizer.eod) | (sample["labels"] == tokenizer.eod)
        assert not sample["loss_mask"][crossing].any()
        assert not sample["span_id"][crossing].any()


def test_without_resets_a_sample_is_one_stretch(
    sample_dataset: Path, tokenizer: O200kHarmonyTokenizer
) -> None:
    dataset = _samples(
        sample_dataset, tokenizer, reset_position_ids=False, reset_attention_mask=False
    )
    sample = dataset[3]
    assert "document_ids" not in sample
    assert torch.equal(sample["position_ids"], torch.arange(LENGTH))


def test_valid_split_and_worker_processes(
    sample_dataset: Path, tokenizer: O200kHarmonyTokenizer
) -> None:
    store = DocumentStore(sample_dataset, "valid")
    dataset = SynthKDDataset(store, 40, _config(tokenizer))
    here = [dataset[n] for n in range(4)]
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=1)
    batches = [batch for _, batch in zip(range(2), loader, strict=False)]
    for name in here[0]:
        there = torch.cat([batch[name] for batch in batches])
        assert torch.equal(there, torch.stack([sample[name] for sample in here]))
    again = pickle.loads(pickle.dumps(store))
    assert np.array_equal(again.read(3)["tokens"], store.read(3)["tokens"])


def test_indices_are_cached_by_content(
    one_shard: Path, sample_dataset: Path, tokenizer: O200kHarmonyTokenizer, tmp_path: Path
) -> None:
    cache = str(tmp_path)
    first = _samples(one_shard, tokenizer, 50, path_to_cache=cache)[7]
    files = sorted(path.name for path in tmp_path.iterdir())
    assert torch.equal(
        _samples(one_shard, tokenizer, 50, path_to_cache=cache)[7]["tokens"], first["tokens"]
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    _samples(sample_dataset, tokenizer, 50, path_to_cache=cache)
    assert len(list(tmp_path.iterdir())) == 2 * len(files)


def test_indices_are_mapped_late(
    one_shard: Path, tokenizer: O200kHarmonyTokenizer, tmp_path: Path
) -> None:
    """--dataloader-defer-npy-index-mmap: Megatron reads a document when it maps the indices."""
    cache = {"path_to_cache": str(tmp_path)}
    at_once = _samples(one_shard, tokenizer, 50, **cache)
    late = _samples(
        one_shard, tokenizer, 50, fast_cache_load=True, defer_npy_index_mmap=True, **cache
    )
    assert late.shuffle_index is None
    for index in (3, 0):
        assert all(torch.equal(late[index][name], at_once[index][name]) for name in late[index])
    store = late.dataset
    assert store.get(2, offset=3, length=4).tolist() == store.read(2)["tokens"][3:7].tolist()


def test_a_split_without_documents_is_named(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    row = {"query": "a", "synthetic_reasoning": "b", "synthetic_answer": "c"}
    rows.write_text(json.dumps(row))
    build_dataset([rows], tmp_path / "data")
    with pytest.raises(DataError, match="no valid documents"):
        DocumentStore(tmp_path / "data", "valid")


# Damage


@pytest.fixture
def damaged(conversations: Path, vocabulary: Path, tmp_path: Path) -> Path:
    """A small dataset of two shards to damage."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(conversations.open(encoding="utf-8").readlines()[:24]))
    build_dataset([rows], tmp_path / "data", rows_per_shard=12, vocabulary=vocabulary)
    return tmp_path / "data"


def _load_all(folder: Path) -> None:
    """What training reads: the whole split, without hashing files before."""
    store = DocumentStore(folder, "train")
    for document in range(len(store)):
        store.read(document)


def test_every_flipped_byte_is_refused_by_file_and_document(damaged: Path) -> None:
    files = sorted(path for path in (damaged / "train").iterdir())
    verify_files(damaged)
    _load_all(damaged)
    random = Random(7)
    for _ in range(1000):
        path = random.choice(files)
        content = path.read_bytes()
        at = random.randrange(len(content))
        flipped = bytearray(content)
        flipped[at] ^= 1 << random.randrange(8)
        path.write_bytes(flipped)
        for check in (verify_files, _load_all):
            with pytest.raises(CorruptDatasetError) as caught:
                check(damaged)
            message = str(caught.value)
            assert path.name in message, (path, at)
            assert "document" in message or "header" in message, (path, at, message)
        path.write_bytes(content)
    verify_files(damaged)


def test_swapped_sidecars_of_equal_length_are_refused(damaged: Path) -> None:
    a, b = (damaged / "train" / f"shard_00_{name}.bin" for name in ("lossmask", "span"))
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)
    for check in (verify_files, _load_all):
        with pytest.raises(CorruptDatasetError, match=r"shard_00_lossmask\.bin: document 0"):
            check(damaged)


def test_a_foreign_id_is_named_with_its_offset(damaged: Path) -> None:
    store = DocumentStore(damaged, "train")
    start = int(store.sequence_lengths[:5].sum())
    path = damaged / "train" / "shard_00_tokens.bin"
    tokens = np.fromfile(path, np.int32)
    tokens[start + 9] = 201088
    tokens.tofile(path)
    for check in (verify_files, _load_all):
        with pytest.raises(
            CorruptDatasetError, match=r"tokens\.bin: document 5, offset 9: id 201088"
        ):
            check(damaged)


@pytest.mark.parametrize("name", ["shard_01_span.bin", "shard_00_tokens.idx"])
def test_missing_and_truncated_files_are_named(damaged: Path, name: str) -> None:
    path = damaged / "train" / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(CorruptDatasetError, match=f"{name}: truncated"):
        _load_all(damaged)
    path.unlink()
    with pytest.raises(CorruptDatasetError, match=f"{name}: missing"):
        _load_all(damaged)


def test_reordered_shards_are_refused(damaged: Path) -> None:
    one, two, spare = (damaged / "train" / name for name in ("one", "two", "spare"))
    del one, two
    names = [p.name for p in (damaged / "train").iterdir() if p.name.startswith("shard_00")]
    for name in names:
        other = damaged / "train" / name.replace("shard_00", "shard_01")
        shutil.move(damaged / "train" / name, spare)
        shutil.move(other, damaged / "train" / name)
        shutil.move(spare, other)
    with pytest.raises(CorruptDatasetError, match="shard_00"):
        _load_all(damaged)


def test_damage_after_the_start_is_found_when_read(damaged: Path) -> None:
    store = DocumentStore(damaged, "train")
    store.read(0)
    path = damaged / "train" / "shard_00_span.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptDatasetError, match=r"span\.bin: document 11"):
        store.read(11)
