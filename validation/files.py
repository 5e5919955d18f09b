"""Files of traces and goldens: read with bounds, written whole or not at all, never unpickled."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import reprlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from validation.limits import MAX_JSON_BYTES, MAX_JSON_VALUES

SCHEMA = 1
# What follows the name of a file that is larger than a limit.
_TOO_MUCH = "whatever wrote it, it is not read; if your runs did, trace fewer steps or record less"


class DamagedFileError(ValueError):
    """A file that is missing, cut or changed; the message begins with its path."""


_UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}")


def unfinished_writes(folder: Path) -> list[Path]:
    """Files below a folder that a killed `write_atomically` has left: of use to nobody."""
    return sorted(p for p in folder.rglob(".*") if _UNFINISHED.fullmatch(p.name) and p.is_file())


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` whole, or leaves it as it was; creates its folder.

    Args:
        path: of the file.
        content: its bytes.

    Raises:
        OSError: it cannot be written, such as on a full disk; the error names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _replace(path, content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, content: bytes) -> None:
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
    """Parses one JSON object within bounds (`validation.limits`).

    Args:
        content: the file's bytes.
        path: its path, for messages.

    Returns:
        The object.

    Raises:
        DamagedFileError: too large, not JSON, not an object, or an object with a key twice, of
            which a reader could see the one and the gate the other.
    """
    if len(content) > MAX_JSON_BYTES:
        raise too_much(path, f"{len(content):,} bytes of JSON", MAX_JSON_BYTES)
    # Each value but the first stands behind one of these; those inside of texts count as well.
    values = sum(content.count(mark) for mark in (b",", b"[", b"{", b":"))
    if values > MAX_JSON_VALUES:
        raise too_much(path, f"about {values:,} values of JSON", MAX_JSON_VALUES)
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

    Args:
        path: the file.
        limit: the most bytes that it may have.

    Returns:
        Its content.

    Raises:
        DamagedFileError: missing, not a regular file, or larger than `limit`.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise DamagedFileError(f"{path}: not a regular file")
        if size > limit:
            raise too_much(path, f"{size:,} bytes", limit)
        return path.read_bytes()
    except OSError as error:
        raise DamagedFileError(f"{path}: {error.strerror or error}") from error


def too_much(path: Path, found: str, limit: int) -> DamagedFileError:
    """The error of a file that is beyond a limit.

    Args:
        path: of the file.
        found: how much it has, and of what.
        limit: how much it may have.

    Returns:
        The error, to be raised.
    """
    return DamagedFileError(f"{path}: {found}, more than {limit:,}: {_TOO_MUCH}")


def check_schema(document: Mapping[str, Any], path: Path) -> None:
    """Refuses a document of another schema version.

    Args:
        document: what was read.
        path: its file, for messages.

    Raises:
        DamagedFileError: with the command that re-records.
    """
    found = document.get("schema")
    if found != SCHEMA:
        raise DamagedFileError(
            f"{path}: schema {reprlib.repr(found)}, this version reads {SCHEMA}; "
            "record it again with `golden update`"
        )


def to_float(value: Any, path: Path) -> float:
    """Reads a recorded number: a JSON number or one of "nan", "inf", "-inf".

    Args:
        value: what JSON holds.
        path: its file, for messages.

    Returns:
        The number; an integer that is too large for a float becomes an infinity.

    Raises:
        DamagedFileError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise DamagedFileError(f"{path}: expected a number, found {reprlib.repr(value)}")
    if isinstance(value, str):
        if value not in ("nan", "inf", "-inf"):
            raise DamagedFileError(f"{path}: expected a number, found {reprlib.repr(value)}")
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
