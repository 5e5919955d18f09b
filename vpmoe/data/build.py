"""Builds a dataset from rows: streaming, in order, resumable, the same bytes on any machine."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np

from vpmoe.data.build_folder import (
    STATE,
    discard_temporaries,
    disk_errors,
    existing_dataset,
    load_state,
    locked,
)
from vpmoe.data.encode import Documents
from vpmoe.data.encode_block import BlockEncoder, EncodedBlock
from vpmoe.data.encode_pool import encoded_blocks
from vpmoe.data.errors import DataError
from vpmoe.data.layout import (
    MANIFEST,
    RECORD,
    SCHEMA,
    SCHEMA_EOD,
    SPLITS,
    canonical_json,
    records_path,
    seal,
    shard_name,
)
from vpmoe.data.profiles import DEFAULT_PROFILE, get_profile
from vpmoe.data.row_content import CHAT_FORMATS, ChatOptions
from vpmoe.data.rows import Block, InputFile, Position, open_input, read_blocks
from vpmoe.data.shard_writer import ShardWriter
from vpmoe.files import write_atomically
from vpmoe.tokenizer.asset import ensure_asset

DUPLICATES = ("error", "skip")


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is; offsets are bytes of JSONL or rows of Parquet, over all inputs."""

    done: int
    total: int
    rows: int
    tokens: int


ProgressCallback = Callable[[BuildProgress], None]


@dataclass(frozen=True)
class BuildResult:
    """What a build made.

    Attributes:
        manifest: the content of manifest.json.
        resumed: it went on from an interrupted build.
        existed: the same dataset was there already; nothing was written.
    """

    manifest: Mapping[str, Any]
    resumed: bool = False
    existed: bool = False


def build_dataset(
    inputs: Sequence[Path | str],
    output: Path | str,
    *,
    workers: int = 1,
    valid_fraction: float | str | Decimal = 0.0,
    rows_per_shard: int | None = None,
    profile: str = DEFAULT_PROFILE,
    duplicates: str = "error",
    supervise_eod: bool = False,
    chat_format: str = CHAT_FORMATS[0],
    ignore_columns: Sequence[str] = (),
    vocabulary: Path | str | None = None,
    checkpoint_seconds: float = 5.0,
    progress: ProgressCallback | None = None,
) -> BuildResult:
    """Builds a dataset, or goes on with an interrupted build of the same input and settings.

    Args:
        inputs: JSONL or Parquet files, in order.
        output: the dataset's folder.
        workers: processes that encode; the bytes do not depend on it.
        valid_fraction: share of rows in the valid split, by a hash of their ids.
        rows_per_shard: documents of a shard; None puts a split into one.
        profile: system and developer messages of rows that have none.
        duplicates: an id seen before is an `error`, or `skip` the later row.
        supervise_eod: also train the prediction of `<|endoftext|>`; another schema.
        chat_format: `harmony`, or `openai` to convert messages of OpenAI's chat form.
        ignore_columns: keys beside a row's messages that hold nothing to train on.
        vocabulary: `o200k_base.tiktoken`; found or installed when None.
        checkpoint_seconds: how much work an interruption may cost.
        progress: called after every block.

    Returns:
        The manifest, and whether an interrupted build was resumed.

    Raises:
        DataError: unusable input, settings or output folder; the message says where and what to
            do. Nothing that a loader would accept is left behind.
    """
    folder = Path(output)
    settings = _settings(
        valid_fraction, rows_per_shard, profile, duplicates, supervise_eod, chat_format
    )
    if workers < 1:
        raise DataError(f"--workers {workers}: must be at least 1")
    if not inputs:
        raise DataError("--input: no file; give JSONL or Parquet files")
    asset = ensure_asset(vocabulary)
    files = [open_input(Path(path)) for path in inputs]
    chat = ChatOptions(chat_format, tuple(ignore_columns))
    encoder = BlockEncoder(asset, profile, settings["valid_fraction"], supervise_eod, chat)
    identity = {
        "schema": SCHEMA_EOD if supervise_eod else SCHEMA,
        "config": settings,
        "config_sha256": hashlib.sha256(canonical_json(settings)).hexdigest(),
        "tokenizer": encoder.tokenizer.provenance,
        "inputs": [{"bytes": file.size, "sha256": file.sha256} for file in files],
    }
    with locked(folder) as lock, disk_errors(folder):
        existing = existing_dataset(folder, identity)
        if existing is not None:
            return BuildResult(existing, existed=True)
        state = load_state(folder, identity)
        job = _Build(folder, identity, files, state, rows_per_shard, duplicates)
        try:
            with encoded_blocks(encoder, workers, job.blocks(), lock) as results:
                job.run(results, checkpoint_seconds, progress)
            manifest = job.finish()
        except BaseException:
            job.abandon()
            raise
    return BuildResult(manifest, resumed=state is not None)


class _Build:
    """One build: the order of blocks, the ids seen, the writers, the checkpoints."""

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        files: Sequence[InputFile],
        state: Mapping[str, Any] | None,
        rows_per_shard: int | None,
        duplicates: str,
    ) -> None:
        self._folder = folder
        self._identity = identity
        self._files = files
        self._duplicates = duplicates
        self._file = state["file"] if state else 0
        self._position = Position(**state["position"]) if state else Position()
        self._empty = state["skipped_empty"] if state else 0
        self._repeated = state["skipped_duplicate"] if state else 0
        self._tokens = state["tokens"] if state else 0
        self._writers = {
            split: ShardWriter(
                folder / split, rows_per_shard, state["splits"][split] if state else None
            )
            for split in SPLITS
        }
        self._seen = _ids_on_disk(folder, self._writers) if state else set()
        self._total = sum(file.extent for file in files)

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """Blocks from the checkpoint on, each with the number of its file."""
        start = self._position
        for number in range(self._file, len(self._files)):
            for block in read_blocks(self._files[number], start):
                yield number, block
            start = Position()

    def run(
        self,
        results: Iterator[tuple[int, Block, EncodedBlock]],
        checkpoint_seconds: float,
        progress: ProgressCallback | None,
    ) -> None:
        """Writes blocks as they come, in order."""
        saved = time.monotonic()
        for number, block, encoded in results:
            self._write(block, encoded)
            self._file, self._position = number, block.after
            self._empty += encoded.skipped
            if time.monotonic() - saved >= checkpoint_seconds:
                self._save()
                saved = time.monotonic()
            if progress is not None:
                progress(self._progress())

    def finish(self) -> dict[str, Any]:
        """Finishes the shards and writes the manifest, last of all."""
        for file in self._files:
            file.check_unchanged()
        if not any(writer.rows for writer in self._writers.values()):
            names = ", ".join(str(file.path) for file in self._files)
            raise DataError(
                f"{names}: no usable row ({self._empty} with an empty field); give rows whose "
                "fields all hold text"
            )
        shards = {split: writer.close() for split, writer in self._writers.items()}
        manifest = dict(self._identity) | {
            "skipped": {"empty": self._empty, "duplicate": self._repeated},
            "splits": {
                split: {
                    "rows": sum(entry["rows"] for entry in entries),
                    "tokens": sum(entry["tokens"] for entry in entries),
                    "shards": entries,
                }
                for split, entries in shards.items()
            },
        }
        content = seal(manifest)
        discard_temporaries(self._folder)
        write_atomically(self._folder / MANIFEST, content)
        (self._folder / STATE).unlink(missing_ok=True)
        result: dict[str, Any] = json.loads(content)
        return result

    def abandon(self) -> None:
        """Closes files; the last checkpoint stays."""
        for writer in self._writers.values():
            writer.abandon()

    def _write(self, block: Block, encoded: EncodedBlock) -> None:
        keep = self._check_ids(block, encoded)
        documents = encoded.documents
        self._tokens += int(documents.lengths[keep].sum())
        for split, wanted in (("train", keep & ~encoded.valid), ("valid", keep & encoded.valid)):
            if wanted.all():
                self._writers[split].append(documents, encoded.records)
            elif wanted.any():
                self._writers[split].append(_select(documents, wanted), encoded.records[wanted])

    def _check_ids(self, block: Block, encoded: EncodedBlock) -> Any:
        keep = np.ones(len(encoded.records), np.bool_)
        for number, row_id in enumerate(encoded.records["id"].tolist()):
            if row_id not in self._seen:
                self._seen.add(row_id)
            elif self._duplicates == "skip":
                keep[number] = False
                self._repeated += 1
            else:
                raise DataError(
                    f"{block.path}:{encoded.lines[number]}: the id of this row occurred before; "
                    "make ids unique, or drop later rows with --duplicates skip"
                )
        return keep

    def _save(self) -> None:
        state = {
            "identity": self._identity,
            "file": self._file,
            "position": {"offset": self._position.offset, "line": self._position.line},
            "skipped_empty": self._empty,
            "skipped_duplicate": self._repeated,
            "tokens": self._tokens,
            "splits": {split: writer.checkpoint() for split, writer in self._writers.items()},
        }
        write_atomically(self._folder / STATE, json.dumps(state).encode())

    def _progress(self) -> BuildProgress:
        before = sum(file.extent for file in self._files[: self._file])
        return BuildProgress(
            before + self._position.offset, self._total, len(self._seen), self._tokens
        )


def _settings(
    valid_fraction: float | str | Decimal,
    rows_per_shard: int | None,
    profile: str,
    duplicates: str,
    supervise_eod: bool,
    chat_format: str,
) -> dict[str, Any]:
    try:
        fraction = Decimal(str(valid_fraction))
    except InvalidOperation as error:
        raise DataError(
            f"--valid-fraction {valid_fraction}: no number; use one in [0, 1]"
        ) from error
    if not 0 <= fraction <= 1:
        raise DataError(f"--valid-fraction {valid_fraction}: must be in [0, 1]")
    if rows_per_shard is not None and rows_per_shard < 1:
        raise DataError(f"--rows-per-shard {rows_per_shard}: must be at least 1")
    if duplicates not in DUPLICATES:
        raise DataError(f"--duplicates {duplicates}: choose from {', '.join(DUPLICATES)}")
    if chat_format not in CHAT_FORMATS:
        raise DataError(f"--chat-format {chat_format}: choose from {', '.join(CHAT_FORMATS)}")
    # Datasets of Harmony rows have the identity that they had before there was another form.
    form = {} if chat_format == CHAT_FORMATS[0] else {"chat_format": chat_format}
    return form | {
        "profile": profile,
        "profile_sha256": get_profile(profile).sha256,
        "valid_fraction": format(fraction.normalize(), "f"),
        "rows_per_shard": rows_per_shard,
        "duplicates": duplicates,
        "supervise_eod": supervise_eod,
    }


def _select(documents: Documents, wanted: Any) -> Documents:
    tokens = np.repeat(wanted, documents.lengths)
    return Documents(
        documents.tokens[tokens],
        documents.loss_mask[tokens],
        documents.span[tokens],
        documents.lengths[wanted],
    )


def _ids_on_disk(folder: Path, writers: Mapping[str, ShardWriter]) -> set[bytes]:
    seen: set[bytes] = set()
    for split in writers:
        number = 0
        while (path := records_path(folder / split, shard_name(number))).exists():
            seen.update(np.fromfile(path, RECORD)["id"].tolist())
            number += 1
    return seen
