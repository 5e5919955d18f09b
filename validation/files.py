"""Files of traces and goldens: read with bounds, written whole or not at all, never unpickled."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA = 1
MAX_JSON_BYTES = 64 * 2**20


class DamagedFileError(ValueError):
    """A file that is missing, cut or changed; the message begins with its path."""


_UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}")


def unfinished_writes(folder: Path) -> list[Path]:
    """Files below a folder that a killed `write_atomically` has left: of use to nobody."""
    return sorted(p for p in folder.rglob(".*") if _UNFINISHED.fullmatch(p.name) and p.is_file())


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` whole, or leaves it as it was; creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk is told by the file that it had no room for
        Path(name).unlink(missing_ok=True)
        raise


def digest(content: bytes) -> str:
    """BLAKE2b-128 in hexadecimal."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def encode_json(document: Any) -> bytes:
    """Canonical JSON: sorted keys, one line an entry of the outer level, shortest exact floats.

    NaN and infinities become "nan", "inf" and "-inf".
    """
    return (
        json.dumps(
            jsonable(document), sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False
        )
        + "\n"
    ).encode()


def decode_json(content: bytes, path: Path) -> dict[str, Any]:
    """Parses one JSON object within bounds.

    Args:
        content: the file's bytes.
        path: its path, for messages.

    Raises:
        DamagedFileError: too large, not JSON, not an object, or an object with a key twice, of
            which a reader could see the one and the gate the other.
    """
    if len(content) > MAX_JSON_BYTES:
        raise DamagedFileError(f"{path}: {len(content)} bytes of JSON, more than {MAX_JSON_BYTES}")
    try:
        document = json.loads(
            content, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice
        )
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise DamagedFileError(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document


def read_file(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """Reads a regular file of bounded size.

    Raises:
        DamagedFileError: missing, not a regular file, or larger than `limit`.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise DamagedFileError(f"{path}: not a regular file")
        if size > limit:
            raise DamagedFileError(f"{path}: {size} bytes, more than {limit}")
        return path.read_bytes()
    except OSError as error:
        raise DamagedFileError(f"{path}: {error.strerror or error}") from error


def check_schema(document: Mapping[str, Any], path: Path) -> None:
    """Refuses a document of another schema version.

    Raises:
        DamagedFileError: with the command that re-records.
    """
    found = document.get("schema")
    if found != SCHEMA:
        raise DamagedFileError(
            f"{path}: schema {found!r}, this version reads {SCHEMA}; "
            "record it again with `golden update`"
        )


def to_float(value: Any, path: Path) -> float:
    """A recorded number: a JSON number or one of "nan", "inf", "-inf".

    Raises:
        DamagedFileError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise DamagedFileError(f"{path}: expected a number, found {value!r}")
    if isinstance(value, str):
        if value not in ("nan", "inf", "-inf"):
            raise DamagedFileError(f"{path}: expected a number, found {value!r}")
        return float(value)
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def safe_name(name: str) -> bool:
    """Whether a name from a file may become a file name: no separators, no leading dot."""
    return (
        bool(name)
        and len(name) <= 120
        and not name.startswith(".")
        and all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    )


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def jsonable(value: Any) -> Any:
    """Replaces NaN and infinities, which JSON lacks, by "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    return value
