"""Builds a dataset from rows: streaming, in order, resumable, the same bytes on any machine."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np

from vpmoe.data.encode import Documents
from vpmoe.data.encode_block import BlockEncoder, EncodedBlock
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
_STATE = ".build.json"
_BLOCKS_IN_FLIGHT = 4  # per worker


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

    Raises:
        DataError: unusable input, settings or output folder; the message says where and what to
            do. Nothing that a loader would accept is left behind.
    """
    folder = Path(output)
    settings = _settings(
        valid_fraction, rows_per_shard, profile, duplicates, supervise_eod, chat_format
    )
    if workers < 1:
        raise DataError(f"workers must be at least 1, found {workers}")
    if not inputs:
        raise DataError("no input file")
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
    with _locked(folder) as lock, _disk_errors(folder):
        existing = _existing(folder, identity)
        if existing is not None:
            return BuildResult(existing, existed=True)
        state = _load_state(folder, identity)
        job = _Build(folder, identity, files, state, rows_per_shard, duplicates)
        try:
            with _encoded_blocks(encoder, workers, job.blocks(), lock) as results:
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
            raise DataError(
                f"no usable row in {', '.join(str(file.path) for file in self._files)} "
                f"({self._empty} with an empty field)"
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
        _discard_temporaries(self._folder)
        write_atomically(self._folder / MANIFEST, content)
        (self._folder / _STATE).unlink(missing_ok=True)
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
        write_atomically(self._folder / _STATE, json.dumps(state).encode())

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
        raise DataError(f"valid fraction {valid_fraction!r} is no number") from error
    if not 0 <= fraction <= 1:
        raise DataError(f"valid fraction {valid_fraction} is not in [0, 1]")
    if rows_per_shard is not None and rows_per_shard < 1:
        raise DataError(f"rows per shard must be at least 1, found {rows_per_shard}")
    if duplicates not in DUPLICATES:
        raise DataError(f"duplicates {duplicates!r}: choose from {', '.join(DUPLICATES)}")
    if chat_format not in CHAT_FORMATS:
        raise DataError(f"chat format {chat_format!r}: choose from {', '.join(CHAT_FORMATS)}")
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


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """One build a folder; the lock goes with the process. Yields its descriptor."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made or opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise DataError(f"{folder}: another build is writing there") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
            raise
        raise DataError(
            f"{error.filename or folder}: {error.strerror}. Nothing unfinished is accepted as a "
            "dataset; make room and run the same command again, it goes on where it stopped"
        ) from error


def _existing(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    from vpmoe.data.dataset_files import read_manifest, verify_sizes

    if not (folder / MANIFEST).exists():
        return None
    manifest = read_manifest(folder)
    if any(manifest.get(name) != value for name, value in identity.items()):
        raise DataError(
            f"{folder}: holds a dataset of other input or settings; choose another folder"
        )
    verify_sizes(folder, manifest)
    _discard_temporaries(folder)
    (folder / _STATE).unlink(missing_ok=True)
    return manifest


def _discard_temporaries(folder: Path) -> None:
    """Removes what a kill in the middle of an atomic write left."""
    for name in (_STATE, MANIFEST):
        for path in folder.glob(f".{name}.*"):
            path.unlink()


def _load_state(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    path = folder / _STATE
    if not path.exists():
        leftovers = [split for split in SPLITS if any((folder / split).glob("*"))]
        if leftovers:
            raise DataError(
                f"{folder / leftovers[0]}: holds files and no manifest; choose another folder, or "
                "remove them"
            )
        # From here on the files in the folder are this build's.
        first = {"identity": identity, "file": None}
        write_atomically(path, json.dumps(first).encode())
        return None
    try:
        state: dict[str, Any] = json.loads(path.read_bytes())
        same = state["identity"] == json.loads(json.dumps(identity))
        if state["file"] is not None:
            Position(**state["position"])
            _ = [state[name] for name in ("skipped_empty", "skipped_duplicate", "tokens")]
            _ = [state["splits"][split] for split in SPLITS]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: damaged; remove the folder and build again") from error
    if not same:
        raise DataError(
            f"{folder}: holds an unfinished build of other input or settings; choose another "
            "folder, or remove it"
        )
    return state if state["file"] is not None else None


def _ids_on_disk(folder: Path, writers: Mapping[str, ShardWriter]) -> set[bytes]:
    seen: set[bytes] = set()
    for split in writers:
        number = 0
        while (path := records_path(folder / split, shard_name(number))).exists():
            seen.update(np.fromfile(path, RECORD)["id"].tolist())
            number += 1
    return seen


_worker_encoder: BlockEncoder


@contextmanager
def _encoded_blocks(
    encoder: BlockEncoder, workers: int, blocks: Iterator[tuple[int, Block]], lock: int
) -> Iterator[Iterator[tuple[int, Block, EncodedBlock]]]:
    """Encoded blocks in the order of the input."""
    if workers == 1:
        yield ((number, block, encoder.encode(block)) for number, block in blocks)
        return
    # Forking a process with torch's or anybody's threads is unsafe; without them it is free.
    alone = threading.active_count() == 1 and "torch" not in sys.modules
    context = multiprocessing.get_context("fork" if alone else "spawn")
    # A forked worker that outlives a killed parent for a moment must not keep its lock.
    inherited = lock if alone else None
    pool = ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_start_worker,
        initargs=(encoder, os.getpid(), inherited),
    )
    try:
        yield _in_order(pool, workers, blocks)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, workers: int, blocks: Iterator[tuple[int, Block]]
) -> Iterator[tuple[int, Block, EncodedBlock]]:
    pending: deque[tuple[int, Block, Future[EncodedBlock]]] = deque()
    try:
        for number, block in blocks:
            pending.append((number, block, pool.submit(_encode_in_worker, block)))
            if len(pending) >= _BLOCKS_IN_FLIGHT * workers:
                yield _first_result(pending)
        while pending:
            yield _first_result(pending)
    except BrokenProcessPool as error:
        first = pending[0][1] if pending else block
        raise DataError(
            f"{first.path}:{first.first_line}: a worker was killed at the rows from here on (out "
            "of memory?); run the same command again with fewer --workers"
        ) from error


def _first_result(
    pending: deque[tuple[int, Block, Future[EncodedBlock]]],
) -> tuple[int, Block, EncodedBlock]:
    number, block, future = pending[0]
    encoded = future.result()
    pending.popleft()
    return number, block, encoded


def _start_worker(encoder: BlockEncoder, parent: int, lock: int | None) -> None:
    global _worker_encoder
    if lock is not None:
        os.close(lock)
    _worker_encoder = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    """Ends the worker when its parent was killed and can't say so."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _encode_in_worker(block: Block) -> EncodedBlock:
    return _worker_encoder.encode(block)
