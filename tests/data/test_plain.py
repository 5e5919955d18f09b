"""Plain data: Megatron's token files and mock data as vpMoE's samples."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from vpmoe.data.errors import CorruptDatasetError, DataError
from vpmoe.data.plain import MockDataset, PlainConfig, PlainDataset

EOD, LENGTH = 99, 16


def write(folder: Path, documents: list[list[int]]) -> str:
    """A token file of Megatron's; returns its path without endings."""
    prefix = str(folder / "tokens")
    builder = IndexedDatasetBuilder(prefix + ".bin", dtype=np.int32)
    for document in documents:
        builder.add_document(np.array(document), [len(document)])
    builder.finalize(prefix + ".idx")
    return prefix


def build(
    prefix: str | None, samples: int = 12, split: str = "100,0,0", **changes: Any
) -> list[Any]:
    """The splits of a token file, or of mock data."""
    fields: dict[str, Any] = {
        "random_seed": 1,
        "sequence_length": LENGTH,
        "blend": None if prefix is None else ([prefix], None),
        "split": split,
        "tokenizer": SimpleNamespace(
            eod=EOD, eos=EOD, pad=-1, vocab_size=100, unique_identifiers={"class": "test"}
        ),
        "reset_position_ids": True,
        "reset_attention_mask": True,
        "eod_mask_loss": False,
        "create_attention_mask": False,
        "vocabulary": 100,
    }
    config = PlainConfig(**{**fields, **changes})
    kind = MockDataset if prefix is None else PlainDataset
    sizes = [samples, samples, samples]
    found: list[Any] = BlendedMegatronDatasetBuilder(kind, sizes, lambda: True, config).build()
    return found


@pytest.fixture
def documents() -> list[list[int]]:
    """Of all lengths from 1 token, EOD, to some that fill samples."""
    return [[*range(1, 1 + n), EOD] for n in (5, 0, 1, 40, 7, 16, 15, 3)]


def expected(tokens: torch.Tensor) -> tuple[list[int], list[int]]:
    """Positions and documents by walking the tokens."""
    positions, ids, position, document = [], [], 0, 0
    for token in tokens.tolist():
        positions.append(position)
        ids.append(document)
        position += 1
        if token == EOD:
            position, document = 0, document + 1
    return positions, ids


@pytest.mark.parametrize("mock", [False, True])
def test_documents_end_at_eod_and_every_token_counts(
    documents: list[list[int]], tmp_path: Path, mock: bool
) -> None:
    changes = {"sequence_length": 3000} if mock else {}
    train, *others = build(None if mock else write(tmp_path, documents), **changes)
    assert mock or others == [None, None]
    seen = 0
    for index in range(12):
        sample = train[index]
        positions, ids = expected(sample["tokens"])
        assert sample["position_ids"].tolist() == positions
        assert sample["document_ids"].tolist() == ids
        assert sample["document_ids"].dtype == torch.int32
        assert sample["span_id"].dtype == torch.int64
        assert torch.equal(sample["labels"][:-1], sample["tokens"][1:])
        assert sample["loss_mask"].all()
        assert torch.equal(sample["span_id"], sample["loss_mask"].long())
        assert sample["sample_id"] == index
        assert set(sample["tokens"].tolist()) <= set(range(100))
        seen += ids[-1]
    assert seen > 0


def test_without_resets_a_sample_is_one_document(
    documents: list[list[int]], tmp_path: Path
) -> None:
    train, *_ = build(
        write(tmp_path, documents), reset_position_ids=False, reset_attention_mask=False
    )
    for index in (0, 1):
        assert "document_ids" not in train[index]
        assert train[index]["position_ids"].tolist() == list(range(LENGTH))


def test_what_the_loss_leaves_out_is_in_no_span(documents: list[list[int]], tmp_path: Path) -> None:
    """--eod-mask-loss, and the sample that fills up a batch."""
    train, *_ = build(write(tmp_path, documents), eod_mask_loss=True)
    sample = train[0]
    assert torch.equal(sample["span_id"] == 0, sample["tokens"] == EOD)
    filling = train[None]
    assert filling["sample_id"] == -1
    assert not filling["span_id"].any()


def test_foreign_ids_are_named_where_they_are_read(tmp_path: Path) -> None:
    prefix = write(tmp_path, [[*range(1, 40), 100, EOD]])
    train, *_ = build(prefix)
    with pytest.raises(DataError, match=r"tokens: sample \d+ of the train split holds the id 100"):
        _ = [train[index] for index in range(12)]


def test_a_split_without_documents_is_refused(documents: list[list[int]], tmp_path: Path) -> None:
    """Megatron 0.19.2 would count epochs of no tokens for ever."""
    with pytest.raises(
        DataError, match=r"its 8 documents are too few for the valid split.*100,0,0"
    ):
        build(write(tmp_path, documents), split="969, 30, 1")


def test_a_file_cut_short_is_refused(documents: list[list[int]], tmp_path: Path) -> None:
    prefix = write(tmp_path, documents)
    tokens = Path(prefix + ".bin")
    tokens.write_bytes(tokens.read_bytes()[:-4])
    with pytest.raises(CorruptDatasetError, match=r"tokens\.bin: \d+ bytes, its index .* says \d+"):
        build(prefix)
