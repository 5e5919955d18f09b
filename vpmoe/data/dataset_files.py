"""Reads and verifies a dataset's files: manifest, shards, document records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vpmoe.data.errors import CorruptDatasetError, DataError
from vpmoe.data.layout import (
    ARRAYS,
    INDEX_HEADER_SIZE,
    MANIFEST,
    RECORD,
    SCHEMA,
    SCHEMA_EOD,
    SPLITS,
    Records,
    array_path,
    canonical_json,
    document_digest,
    index_bytes,
    record_checks,
    records_path,
)
from vpmoe.tokenizer.asset import ASSET_SHA256
from vpmoe.tokenizer.special import ENDOFTEXT, PADDED_VOCAB_SIZE


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a dataset, checked against its own digest.

    Args:
        folder: of the dataset.

    Returns:
        The manifest.

    Raises:
        DataError: no dataset, an unfinished one, or one of another schema or tokenizer.
        CorruptDatasetError: a damaged manifest.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: no dataset: it has no {MANIFEST} (missing, or its build is unfinished: run "
            "`vpmoe data build` again)"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}; "
            "give a dataset that `vpmoe data build` wrote"
        ) from error
    try:
        manifest: dict[str, Any] = json.loads(content)
        body = {name: value for name, value in manifest.items() if name != "digest"}
        digest = hashlib.sha256(canonical_json(body)).hexdigest()
        intact = manifest["digest"] == digest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptDatasetError(f"{path}: damaged: {error}") from error
    if not intact:
        raise CorruptDatasetError(f"{path}: damaged: its content does not have its digest")
    if manifest["schema"] not in (SCHEMA, SCHEMA_EOD):
        raise DataError(f"{path}: schema {manifest['schema']!r} is not {SCHEMA}; build again")
    tokenizer = manifest["tokenizer"]
    if (tokenizer["asset_sha256"], tokenizer["vocab_size"]) != (ASSET_SHA256, PADDED_VOCAB_SIZE):
        raise DataError(f"{path}: built with another tokenizer ({tokenizer}); build again")
    return manifest


def verify_sizes(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Checks that every file is there, with its size.

    Args:
        folder: of the dataset.
        manifest: its manifest.

    Raises:
        CorruptDatasetError: a missing, truncated or grown file.
    """
    for shard in open_shards(folder, manifest):
        shard.verify_sizes()


def open_shards(
    folder: Path, manifest: Mapping[str, Any], splits: tuple[str, ...] = SPLITS
) -> list[Shard]:
    """The shards of splits, in order."""
    return [
        Shard(folder / split, entry["name"], entry["rows"], entry["tokens"], entry["files"])
        for split in splits
        for entry in manifest["splits"][split]["shards"]
    ]


@dataclass(frozen=True)
class Shard:
    """One shard, opened lazily and never held open across processes.

    Attributes:
        folder: the split's folder.
        name: `shard_NN`.
        rows: documents.
        tokens: tokens of all documents.
        files: name of a file to its size in bytes and sha256.
    """

    folder: Path
    name: str
    rows: int
    tokens: int
    files: Mapping[str, Mapping[str, Any]]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.name, self.rows, self.tokens, dict(self.files))

    def path(self, array: str, suffix: str = "bin") -> Path:
        """Path of an array's file."""
        return array_path(self.folder, self.name, array, suffix)

    @cached_property
    def records(self) -> Records:
        """`layout.RECORD` [rows]."""
        return np.memmap(records_path(self.folder, self.name), RECORD, "r", shape=self.rows)

    @cached_property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """`tokens` int32, `lossmask` and `span` uint8, all [tokens]; memory-mapped."""
        return {
            name: np.memmap(self.path(name), dtype, "r", shape=self.tokens)
            for name, dtype in ARRAYS.items()
        }

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of every document."""
        return np.ascontiguousarray(self.records["length"])

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Index of every document's first token."""
        ends: npt.NDArray[np.int64] = np.cumsum(self.lengths, dtype=np.int64)
        return ends - self.lengths

    def verify(self) -> None:
        """Proves the shard against the manifest and against itself, document by document.

        Raises:
            CorruptDatasetError: names file, document and, for a foreign id, the offset.
        """
        self.verify_structure()
        for document in range(self.rows):
            self.verify_document(document)
        for name, facts in self.files.items():
            _verify_hash(self.folder / name, facts["sha256"])

    def verify_files(self) -> None:
        """Holds whole files against the manifest; goes through documents to say what is damaged.

        Raises:
            CorruptDatasetError: names file, document and, for a foreign id, the offset.
        """
        self.verify_structure()
        try:
            for array in ARRAYS:
                path = self.path(array)
                _verify_hash(path, self.files[path.name]["sha256"])
        except CorruptDatasetError:
            self.verify()
            raise

    def verify_structure(self) -> None:
        """Checks sizes, document records and indices: all but the documents themselves.

        Raises:
            CorruptDatasetError: names file and document.
        """
        self.verify_sizes()
        self._verify_records()
        self._verify_indices()

    def verify_sizes(self) -> None:
        """Checks that every file is there, with its size.

        Raises:
            CorruptDatasetError: names the file.
        """
        for name, facts in self.files.items():
            path = self.folder / name
            try:
                size = path.stat().st_size
            except FileNotFoundError as error:
                raise CorruptDatasetError(f"{path}: missing") from error
            if not path.is_file():
                raise CorruptDatasetError(f"{path}: no file: it is a folder or a device")
            if size != facts["bytes"]:
                kind = "truncated" if size < facts["bytes"] else "grown"
                document = self._document_at(name, min(size, facts["bytes"]))
                raise CorruptDatasetError(
                    f"{path}: {kind}{document}: {size} bytes, the manifest says {facts['bytes']}"
                )

    def verify_document(self, document: int) -> None:
        """Checks one document against its digests and the rules of its schema.

        Args:
            document: its number in the shard.

        Raises:
            CorruptDatasetError: names file, document and, for a foreign id, the offset.
        """
        start = int(self.starts[document])
        end = start + int(self.lengths[document])
        record = self.records[document]
        tokens = self.arrays["tokens"][start:end]
        foreign = np.flatnonzero((tokens < 0) | (tokens >= PADDED_VOCAB_SIZE))
        if foreign.size:
            offset = int(foreign[0])
            raise CorruptDatasetError(
                f"{self.path('tokens')}: document {document}, offset {offset}: id "
                f"{int(tokens[offset])} is outside 0..{PADDED_VOCAB_SIZE - 1}"
            )
        for name, array in self.arrays.items():
            if document_digest(array[start:end].tobytes()) != record[name].tobytes():
                raise CorruptDatasetError(
                    f"{self.path(name)}: document {document} (elements {start} to {end}) is not "
                    "what was built: its digest differs"
                )
        mask, span = self.arrays["lossmask"][start:end], self.arrays["span"][start:end]
        if tokens[-1] != ENDOFTEXT or not np.array_equal(mask, span != 0) or span.max() > 2:
            raise CorruptDatasetError(
                f"{self.folder / self.name}: document {document} breaks the schema: it must end "
                "with <|endoftext|> and be supervised exactly in its spans 1 and 2"
            )

    def _verify_records(self) -> None:
        path = records_path(self.folder, self.name)
        try:
            _verify_hash(path, self.files[path.name]["sha256"])
        except CorruptDatasetError as error:
            bad = np.flatnonzero(record_checks(self.records) != self.records["check"])
            place = (
                f"document {int(bad[0])}: damaged record"
                if bad.size
                else "document 0 and all after it: whole records, of another shard"
            )
            raise CorruptDatasetError(f"{path}: {place}") from error
        if self.lengths.min() < 1 or int(self.lengths.sum(dtype=np.int64)) != self.tokens:
            raise CorruptDatasetError(f"{path}: lengths do not add up to {self.tokens} tokens")

    def _verify_indices(self) -> None:
        for array, dtype in ARRAYS.items():
            path = self.path(array, "idx")
            found = np.fromfile(path, np.uint8)
            expected = np.frombuffer(index_bytes(dtype, self.lengths), np.uint8)
            different = np.flatnonzero(found != expected)
            if different.size:
                place = self._document_at(path.name, int(different[0]))
                raise CorruptDatasetError(
                    f"{path}: damaged{place}: it is not the index of the documents' lengths"
                )

    def _document_at(self, name: str, offset: int) -> str:
        """Words for the document that a file's byte belongs to."""
        if name.endswith(".idx"):
            at = offset - INDEX_HEADER_SIZE
            if at < 0:
                return " in the header"
            for size in (4, 8):  # lengths, then pointers
                if at < size * self.rows:
                    return f" at document {at // size}"
                at -= size * self.rows
            return f" at document {min(at // 8, self.rows - 1)}"
        path = records_path(self.folder, self.name)
        if name == path.name:
            return f" at document {offset // RECORD.itemsize}"
        if not path.exists() or path.stat().st_size != self.files[path.name]["bytes"]:
            return ""
        array = next(array for array in ARRAYS if name == self.path(array).name)
        element = offset // np.dtype(ARRAYS[array]).itemsize
        document = int(np.searchsorted(self.starts, element, side="right")) - 1
        return f" at document {min(document, self.rows - 1)}"


def _verify_hash(path: Path, expected: str) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise CorruptDatasetError(f"{path}: sha256 {found}, the manifest says {expected}")


def verify_dataset(folder: Path) -> Iterator[Shard]:
    """Proves a dataset against its manifest and itself.

    Args:
        folder: of the dataset.

    Yields:
        Every shard, once it is proved.

    Raises:
        DataError: no dataset, or a damaged one; names file, document and offset.
    """
    manifest = read_manifest(folder)
    for split in SPLITS:
        known = {name for shard in manifest["splits"][split]["shards"] for name in shard["files"]}
        for path in sorted((folder / split).glob("*")):
            if path.name not in known:
                raise CorruptDatasetError(f"{path}: not in the manifest")
    for shard in open_shards(folder, manifest):
        shard.verify()
        yield shard
