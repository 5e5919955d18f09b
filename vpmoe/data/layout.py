"""The dataset on disk.

    manifest.json
    {train,valid}/shard_NN_{tokens,lossmask,span}.{bin,idx}   Megatron IndexedDataset
    {train,valid}/shard_NN_documents.bin                      `RECORD` per document

The manifest is written last: a folder without one is no dataset. It holds no time stamp, no path
and nothing of the machine, so that equal input gives equal bytes everywhere.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SCHEMA = "synth_kd_v1"
SCHEMA_EOD = "synth_kd_v1+eod"
MANIFEST = "manifest.json"
SPLITS = ("train", "valid")
ARRAYS: dict[str, type[np.int32] | type[np.uint8]] = {
    "tokens": np.int32,
    "lossmask": np.uint8,
    "span": np.uint8,
}
# What verify and the loader hold a document against: id is BLAKE2b-16 of the row id, the others
# BLAKE2b-8 of the document's bytes in the three .bin files; check is CRC-32 of all before it.
RECORD = np.dtype(
    [
        ("id", "V16"),
        ("length", "<i4"),
        ("tokens", "V8"),
        ("lossmask", "V8"),
        ("span", "V8"),
        ("check", "<u4"),
    ]
)
Records = npt.NDArray[np.void]

# Megatron-core, `core/datasets/indexed_dataset.py`.
_INDEX_MAGIC = b"MMIDIDX\x00\x00"
_INDEX_VERSION = 1
_DTYPE_CODES = {np.uint8: 1, np.int32: 4}
INDEX_HEADER_SIZE = 34


def shard_name(number: int) -> str:
    """`shard_00`, `shard_01`, ..."""
    return f"shard_{number:02d}"


def array_path(folder: Path, shard: str, array: str, suffix: str) -> Path:
    """Path of one file of a shard: suffix is `bin` or `idx`."""
    return folder / f"{shard}_{array}.{suffix}"


def records_path(folder: Path, shard: str) -> Path:
    """Path of a shard's document records."""
    return folder / f"{shard}_documents.bin"


def index_bytes(dtype: type[np.int32] | type[np.uint8], lengths: npt.NDArray[np.int32]) -> bytes:
    """Builds a Megatron `.idx` of documents of one sequence each.

    Args:
        dtype: of the `.bin`.
        lengths: int32 [documents].

    Returns:
        The file's content.
    """
    count = len(lengths)
    ends = np.cumsum(lengths, dtype=np.int64) * np.dtype(dtype).itemsize
    pointers = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if count else ends
    return b"".join(
        [
            _INDEX_MAGIC,
            struct.pack("<QBQQ", _INDEX_VERSION, _DTYPE_CODES[dtype], count, count + 1),
            lengths.astype("<i4").tobytes(),
            pointers.astype("<i8").tobytes(),
            np.arange(count + 1, dtype="<i8").tobytes(),
        ]
    )


def document_digest(content: bytes | memoryview) -> bytes:
    """BLAKE2b-8 of a document's bytes in one `.bin`."""
    return hashlib.blake2b(content, digest_size=8).digest()


def record_checks(records: Records) -> npt.NDArray[np.uint32]:
    """CRC-32 of every record's bytes before its `check`."""
    content, size = records.tobytes(), RECORD.itemsize
    return np.fromiter(
        (zlib.crc32(content[at : at + size - 4]) for at in range(0, len(content), size)),
        np.uint32,
        len(records),
    )


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """One spelling of a JSON object, for hashing."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def seal(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as it is written: with `digest`, the sha256 of the rest."""
    body = {name: value for name, value in manifest.items() if name != "digest"}
    sealed = body | {"digest": hashlib.sha256(canonical_json(body)).hexdigest()}
    return (json.dumps(sealed, sort_keys=True, ensure_ascii=False, indent=1) + "\n").encode()
