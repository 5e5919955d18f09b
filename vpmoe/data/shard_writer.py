"""Writes the shards of one split, in order, so that a build can stop and go on at any point."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vpmoe.data.encode import Documents
from vpmoe.data.layout import (
    ARRAYS,
    RECORD,
    Records,
    array_path,
    index_bytes,
    records_path,
    shard_name,
)
from vpmoe.files import write_atomically


@dataclass
class _Open:
    """The shard being written."""

    streams: dict[str, BinaryIO]
    digests: dict[str, Any]
    rows: int
    tokens: int


class ShardWriter:
    """Appends documents to shards of one split.

    Args:
        folder: the split's folder.
        rows_per_shard: documents of a shard; None puts all into one.
        state: what `state()` returned at the checkpoint to go on from; files are cut back to it.
    """

    def __init__(
        self, folder: Path, rows_per_shard: int | None, state: Mapping[str, Any] | None
    ) -> None:
        self._folder = folder
        self._rows_per_shard = rows_per_shard
        self._finished: list[dict[str, Any]] = list(state["finished"]) if state else []
        self._open: _Open | None = None
        self._discard_leftovers(keep_open=bool(state and state["rows"]))
        if state and state["rows"]:
            self._open = self._reopen(state["rows"], state["tokens"])

    @property
    def rows(self) -> int:
        """Documents written."""
        return sum(shard["rows"] for shard in self._finished) + (
            self._open.rows if self._open else 0
        )

    def append(self, documents: Documents, records: Records) -> None:
        """Appends documents, closing and opening shards as they fill."""
        ends = np.cumsum(documents.lengths, dtype=np.int64)
        done = 0
        while done < len(records):
            shard = self._open or self._start()
            room = len(records) - done
            if self._rows_per_shard is not None:
                room = min(room, self._rows_per_shard - shard.rows)
            first = int(ends[done - 1]) if done else 0
            last = int(ends[done + room - 1])
            self._write(shard, "tokens", documents.tokens[first:last])
            self._write(shard, "lossmask", documents.loss_mask[first:last])
            self._write(shard, "span", documents.span[first:last])
            self._write(shard, "documents", records[done : done + room])
            shard.rows += room
            shard.tokens += last - first
            done += room
            if shard.rows == self._rows_per_shard:
                self._finish(shard)

    def checkpoint(self) -> dict[str, Any]:
        """Makes everything written durable, and returns what `__init__` needs to go on."""
        shard = self._open
        if shard is not None:
            for stream in shard.streams.values():
                stream.flush()
                os.fsync(stream.fileno())
        return {
            "finished": self._finished,
            "rows": shard.rows if shard else 0,
            "tokens": shard.tokens if shard else 0,
        }

    def close(self) -> list[dict[str, Any]]:
        """Finishes the last shard; returns every shard's entry for the manifest."""
        if self._open is not None:
            self._finish(self._open)
        return self._finished

    def abandon(self) -> None:
        """Closes the files without finishing the shard."""
        if self._open is not None:
            for stream in self._open.streams.values():
                stream.close()
            self._open = None

    def _paths(self, number: int) -> dict[str, Path]:
        name = shard_name(number)
        paths = {array: array_path(self._folder, name, array, "bin") for array in ARRAYS}
        return paths | {"documents": records_path(self._folder, name)}

    def _start(self) -> _Open:
        self._folder.mkdir(parents=True, exist_ok=True)
        paths = self._paths(len(self._finished))
        self._open = _Open(
            {name: path.open("wb") for name, path in paths.items()},
            {name: hashlib.sha256() for name in paths},
            0,
            0,
        )
        return self._open

    def _reopen(self, rows: int, tokens: int) -> _Open:
        sizes = {name: tokens * np.dtype(dtype).itemsize for name, dtype in ARRAYS.items()}
        sizes["documents"] = rows * RECORD.itemsize
        streams: dict[str, BinaryIO] = {}
        digests = {}
        for name, path in self._paths(len(self._finished)).items():
            stream = path.open("r+b")
            stream.truncate(sizes[name])
            digests[name] = hashlib.file_digest(stream, "sha256")
            stream.seek(sizes[name])
            streams[name] = stream
        return _Open(streams, digests, rows, tokens)

    @staticmethod
    def _write(shard: _Open, name: str, array: Any) -> None:
        content = array.tobytes()
        shard.streams[name].write(content)
        shard.digests[name].update(content)

    def _finish(self, shard: _Open) -> None:
        self.checkpoint()
        for stream in shard.streams.values():
            stream.close()
        number = len(self._finished)
        name = shard_name(number)
        records = np.fromfile(records_path(self._folder, name), RECORD)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": shard.digests[key].hexdigest()}
            for key, path in self._paths(number).items()
        }
        for array, dtype in ARRAYS.items():
            index = index_bytes(dtype, records["length"])
            path = array_path(self._folder, name, array, "idx")
            write_atomically(path, index)
            files[path.name] = {
                "bytes": len(index),
                "sha256": hashlib.sha256(index).hexdigest(),
            }
        self._finished.append(
            {"name": name, "rows": shard.rows, "tokens": shard.tokens, "files": files}
        )
        self._open = None

    def _discard_leftovers(self, *, keep_open: bool) -> None:
        """Removes what was written after the checkpoint."""
        keep = {name for shard in self._finished for name in shard["files"]}
        if keep_open:
            keep |= {path.name for path in self._paths(len(self._finished)).values()}
        for path in self._folder.glob("*shard_*") if self._folder.is_dir() else ():
            if path.name not in keep:
                path.unlink()
