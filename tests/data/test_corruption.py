"""Whatever byte is changed, `verify` and the loader refuse, and say where."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import pytest

from vpmoe.data.build import build_dataset
from vpmoe.data.dataset_files import open_shards, read_manifest, verify_dataset
from vpmoe.data.documents import DocumentStore
from vpmoe.data.errors import CorruptDatasetError, DataError
from vpmoe.data.layout import seal


@pytest.fixture(scope="module")
def small(
    tmp_path_factory: pytest.TempPathFactory,
    make_rows: Callable[..., list[dict[str, str]]],
    write_rows: Callable[..., Path],
    vocabulary: Path,
) -> Path:
    """16 documents in shards of 5, with a valid split."""
    folder = tmp_path_factory.mktemp("small")
    rows = write_rows(folder / "rows.jsonl", make_rows(16, most=10))
    build_dataset(
        [rows], folder / "dataset", valid_fraction=0.4, rows_per_shard=5, vocabulary=vocabulary
    )
    return folder / "dataset"


@pytest.fixture
def dataset(small: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(small, tmp_path / "dataset")
    return tmp_path / "dataset"


def _verify(folder: Path) -> None:
    for _ in verify_dataset(folder):
        pass


def _load(folder: Path) -> None:
    """All that a training run reads."""
    for split in ("train", "valid"):
        store = DocumentStore(folder, split)
        for document in range(len(store)):
            store.read(document)


@contextmanager
def _changed(path: Path, content: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def test_a_whole_dataset_is_accepted(built: Path) -> None:
    _verify(built)
    _load(built)


def test_1000_random_corruptions_are_all_caught(dataset: Path) -> None:
    random = Random(7)
    files = sorted(path for path in dataset.rglob("*") if path.is_file())
    assert len(files) > 20
    for number in range(1000):
        path = random.choice(files)
        content = bytearray(path.read_bytes())
        at = random.randrange(len(content))
        content[at] ^= random.randrange(1, 256)
        with _changed(path, bytes(content)):
            for refuse in (_verify, _load) if number % 4 == 0 else (_verify,):
                with pytest.raises(DataError) as caught:
                    refuse(dataset)
                assert str(path) in str(caught.value), (path, at)
                if path.suffix == ".bin":
                    assert "document " in str(caught.value), (path, at)
    _verify(dataset)


def test_every_truncation_growth_and_loss_is_caught(dataset: Path) -> None:
    random = Random(8)
    for path in sorted((dataset / "train").iterdir()):
        content = path.read_bytes()
        cut = random.randrange(len(content))
        for damaged in (b"", content[:cut], content[:-1], content + b"\0"):
            with _changed(path, damaged):
                for refuse in (_verify, _load):
                    with pytest.raises(CorruptDatasetError, match=path.name):
                        refuse(dataset)
        hidden = path.rename(dataset / "hidden")
        for refuse in (_verify, _load):
            with pytest.raises(CorruptDatasetError, match=f"{path.name}: missing"):
                refuse(dataset)
        hidden.rename(path)


def test_swapped_files_of_equal_length_are_caught(dataset: Path) -> None:
    swapped = 0
    for a, b in itertools.combinations(sorted(dataset.rglob("shard_*.bin")), 2):
        first, second = a.read_bytes(), b.read_bytes()
        if len(first) != len(second) or first == second:
            continue
        with _changed(a, second), _changed(b, first):
            for refuse in (_verify, _load):
                with pytest.raises(CorruptDatasetError, match=r"document \d+"):
                    refuse(dataset)
        swapped += 1
    assert swapped >= 3  # the mask and the span of every shard at least


@pytest.mark.parametrize("foreign", [201_088, 2**31 - 1, -1])
def test_a_foreign_id_is_named_with_document_and_offset(dataset: Path, foreign: int) -> None:
    shard = open_shards(dataset, read_manifest(dataset), ("train",))[1]
    document, offset = 3, 5
    tokens = np.fromfile(shard.path("tokens"), np.int32)
    tokens[int(shard.starts[document]) + offset] = foreign
    with _changed(shard.path("tokens"), tokens.tobytes()):
        for refuse in (_verify, _load):
            with pytest.raises(
                CorruptDatasetError,
                match=rf"shard_01_tokens\.bin: document 3, offset 5: id {foreign} is outside",
            ):
                refuse(dataset)


def test_a_stray_file_is_refused(dataset: Path) -> None:
    (dataset / "train" / "shard_99_tokens.bin").write_bytes(b"")
    with pytest.raises(CorruptDatasetError, match=r"shard_99_tokens\.bin: not in the manifest"):
        _verify(dataset)


@pytest.mark.parametrize(
    ("change", "match"),
    [({"schema": "other"}, "schema 'other'"), ({"tokenizer": "gpt2"}, "another tokenizer")],
)
def test_another_schema_or_tokenizer_is_refused(
    dataset: Path, change: dict[str, str], match: str
) -> None:
    path = dataset / "manifest.json"
    manifest = json.loads(path.read_bytes())
    if "tokenizer" in change:
        change = {"tokenizer": manifest["tokenizer"] | {"asset_sha256": "0" * 64}}
    path.write_bytes(seal(manifest | change))
    for refuse in (_verify, _load):
        with pytest.raises(DataError, match=match):
            refuse(dataset)


def test_no_dataset_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="vpmoe data build"):
        _verify(tmp_path)
