"""The shipped sample as a dataset; rows from a seed, and a dataset of those."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from vpmoe.data.build import build_dataset
from vpmoe.data.encode_block import BlockEncoder
from vpmoe.data.row_content import CHAT_FORMATS, ChatOptions
from vpmoe.data.rows import Position, open_input, read_blocks
from vpmoe.tokenizer import O200kHarmonyTokenizer
from vpmoe.tokenizer.asset import ASSET_NAME, ensure_asset

_SYLLABLES = (
    "ka",
    "lo",
    "mi",
    "ré",
    "ñu",
    "中文",
    "шо",
    "🌈",
    " ",
    ", ",
    ". ",
    "\n",
    "12",
    "שלום ",
)


@pytest.fixture(scope="session")
def vocabulary(repository: Path) -> Path:
    """The verified `o200k_base.tiktoken`."""
    return ensure_asset(repository / "data" / "tokenizer" / ASSET_NAME)


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Path) -> O200kHarmonyTokenizer:
    """One tokenizer for all tests."""
    return O200kHarmonyTokenizer(vocabulary)


@pytest.fixture(scope="session")
def conversations(repository: Path) -> Path:
    """The shipped rows."""
    return repository / "data" / "sample" / "conversations.jsonl"


@pytest.fixture(scope="session")
def sample_dataset(
    conversations: Path, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The shipped rows as a dataset of several shards, some of them for validation; read only."""
    folder = tmp_path_factory.mktemp("sample") / "data"
    build_dataset(
        [conversations], folder, valid_fraction="0.1", rows_per_shard=100, vocabulary=vocabulary
    )
    return folder


@pytest.fixture(scope="session")
def encode_file(vocabulary: Path) -> Callable[..., int]:
    """Reads and encodes a file as a build does, without a dataset; returns its documents."""
    encoders = {
        form: BlockEncoder(vocabulary, "short", "0", False, ChatOptions(form))
        for form in CHAT_FORMATS
    }

    def encode(path: Path, chat_format: str = "harmony") -> int:
        blocks = read_blocks(open_input(path), Position())
        encoded = (encoders[chat_format].encode(block) for block in blocks)
        return sum(len(block.records) for block in encoded)

    return encode


def _text(random: Random, most: int) -> str:
    return "x" + "".join(random.choice(_SYLLABLES) for _ in range(random.randrange(most)))


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., list[dict[str, str]]]:
    """Makes SYNTH rows from a seed: `make_rows(count, seed=0, most=40)`."""

    def make(count: int, seed: int = 0, most: int = 40) -> list[dict[str, str]]:
        random = Random(seed)
        return [
            {
                "synth_id": f"row-{seed}-{number}",
                "query": _text(random, most),
                "synthetic_reasoning": _text(random, most),
                "synthetic_answer": _text(random, most),
            }
            for number in range(count)
        ]

    return make


@pytest.fixture(scope="session")
def write_rows() -> Callable[[Path, Sequence[Mapping[str, Any]]], Path]:
    """Writes rows as JSONL."""

    def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def built(
    tmp_path_factory: pytest.TempPathFactory,
    make_rows: Callable[..., list[dict[str, str]]],
    write_rows: Callable[..., Path],
    vocabulary: Path,
) -> Path:
    """40 documents in shards of 9, with a valid split; their rows lie beside it; read only."""
    folder = tmp_path_factory.mktemp("built")
    rows = write_rows(folder / "rows.jsonl", make_rows(40))
    build_dataset(
        [rows], folder / "dataset", valid_fraction=0.3, rows_per_shard=9, vocabulary=vocabulary
    )
    return folder / "dataset"
