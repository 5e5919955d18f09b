"""The documents of one split, over all its shards, verified as they are read."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vpmoe.data.dataset_files import open_shards, read_manifest
from vpmoe.data.errors import DataError
from vpmoe.data.layout import ARRAYS, records_path


class DocumentStore:
    """Documents of a split, numbered through its shards in order.

    Opening checks every file's size, the document records and the indices. A document's own bytes
    are held against its digest when a process first reads it; `verify_files` checks all at once.

    Args:
        folder: a dataset, as `vpmoe data build` writes it.
        split: `train` or `valid`.

    Raises:
        DataError: no dataset, a damaged one, or a split without documents.
    """

    def __init__(self, folder: Path | str, split: str) -> None:
        manifest = read_manifest(Path(folder))
        self.folder = Path(folder)
        self.split = split
        self.digest = str(manifest["digest"])
        self._shards = open_shards(self.folder, manifest, (split,))
        if not self._shards:
            raise DataError(f"{folder}: no {split} documents; build with another --valid-fraction")
        for shard in self._shards:
            shard.verify_sizes()
            shard.verify_structure()
        self._first = np.cumsum([0, *(shard.rows for shard in self._shards)])
        self._verified = np.zeros(len(self), np.bool_)

    def __len__(self) -> int:
        return int(self._first[-1])

    @cached_property
    def sequence_lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of every document, int32 [documents]."""
        return np.concatenate([shard.lengths for shard in self._shards]).astype(np.int32)

    def locate(self, document: int) -> tuple[str, int]:
        """Name of the shard that holds a document, and its number there."""
        shard, number = self._find(document)
        return self._shards[shard].name, number

    def shards(self) -> list[dict[str, Any]]:
        """`shard` (its name), `rows`, `tokens` and `records_sha256` of every shard, in order."""
        return [
            {
                "shard": shard.name,
                "rows": shard.rows,
                "tokens": shard.tokens,
                "records_sha256": shard.files[records_path(shard.folder, shard.name).name][
                    "sha256"
                ],
            }
            for shard in self._shards
        ]

    def record(self, document: int) -> dict[str, Any]:
        """Reads what the dataset says of a document.

        Args:
            document: its number in the split.

        Returns:
            `row`, BLAKE2b-16 of its row's id; `length` in tokens; `tokens`, `lossmask` and `span`,
            BLAKE2b-8 of each. Digests in hexadecimal.
        """
        shard, number = self._find(document)
        record = self._shards[shard].records[number]
        digests = {name: record[name].tobytes().hex() for name in ARRAYS}
        return {"row": record["id"].tobytes().hex(), "length": int(record["length"])} | digests

    def read(self, document: int, offset: int = 0, length: int | None = None) -> dict[str, Any]:
        """A piece of a document.

        Args:
            document: its number.
            offset: first token.
            length: how many tokens; to the end when None.

        Returns:
            `tokens` int32, `lossmask` and `span` uint8, each [length].

        Raises:
            CorruptDatasetError: the document is not what was built; names file, document, offset.
        """
        which, local = self._find(document)
        shard = self._shards[which]
        if not self._verified[document]:
            shard.verify_document(local)
            self._verified[document] = True
        size = int(shard.lengths[local])
        start = int(shard.starts[local]) + offset
        end = start + (size - offset if length is None else length)
        return {name: array[start:end] for name, array in shard.arrays.items()}

    def get(
        self, document: int, offset: int = 0, length: int | None = None
    ) -> npt.NDArray[np.int32]:
        """A piece of a document's tokens, as Megatron's `IndexedDataset` gives it.

        Megatron's `GPTDataset` calls it where indices are mapped late.

        Args:
            document: its number.
            offset: first token.
            length: how many tokens; to the end when None.

        Returns:
            int32 [length].

        Raises:
            CorruptDatasetError: the document is not what was built; names file, document, offset.
        """
        tokens: npt.NDArray[np.int32] = self.read(document, offset, length)["tokens"]
        return tokens

    def _find(self, document: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._first, document, side="right")) - 1
        return shard, document - int(self._first[shard])


def verify_files(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Hashes a dataset's files, so that training does not begin on a damaged one.

    Args:
        folder: the dataset.
        part: which share of the shards, from 0.
        parts: how many share the work.

    Raises:
        DataError: no dataset, or a damaged one; names file, document and, for a foreign id, the
            offset.
    """
    for shard in open_shards(folder, read_manifest(folder))[part::parts]:
        shard.verify_files()
