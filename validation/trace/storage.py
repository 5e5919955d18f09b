"""Traces on disk: JSON for what people read, safetensors for projections, a digest for every file.

A trace folder holds `trace.json` (provenance and the digests of the rest), `curves.json`,
`events.json`, `projections.safetensors` and `tables.json`. Writing is atomic by `trace.json`, which
comes last: a folder without it is no trace. Nothing is unpickled; names from files are never paths.

Curves and tables are labelled: with their name on the first rank, `name@N` on rank N. A name that
itself ends like a rank, such as `pass@1`, says its rank always: `pass@1@0`, so that each label is
of one record.
"""

from __future__ import annotations

import json
import re
import reprlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as safetensors_save

from validation.files import (
    SCHEMA,
    DamagedFileError,
    check_schema,
    decode_json,
    digest,
    encode_json,
    jsonable,
    read_file,
    to_float,
    too_much,
    write_atomically,
)
from validation.limits import MAX_BINARY_BYTES, MAX_JSON_BYTES, MAX_NAME
from validation.trace.model import (
    PHASES,
    CurveKey,
    Event,
    HeldInvariant,
    Key,
    Row,
    TableKey,
    Trace,
)
from validation.trace.sketch import PROJECTIONS, Sketch

CURVES, EVENTS, TABLES, PROJECTION_FILE = (
    "curves.json",
    "events.json",
    "tables.json",
    "projections.safetensors",
)
HEAD = "trace.json"

# A discrete value that looks like an invariant and is none is a plain one.
_DISCRETE, _PLAIN, _SKETCH = "d", "p", "s"
_RANKED = re.compile(r"(.*)@(0|[1-9][0-9]{0,8})", re.DOTALL)


def encode_trace(trace: Trace) -> dict[str, bytes]:
    """The trace's files but its head: name -> content; the same trace gives the same bytes."""
    sketches = [event.value for event in trace.events if isinstance(event.value, Sketch)]
    projections = np.asarray([s.projections for s in sketches], dtype=np.float32).reshape(
        len(sketches), PROJECTIONS
    )
    return {
        CURVES: _lines(
            {
                _label(key.metric, key.rank): {
                    "phase": trace.curve_phases.get(key, "forward"),
                    "steps": list(series),
                    "values": list(series.values()),
                }
                for key, series in trace.curves.items()
            },
            "curves",
        ),
        EVENTS: _event_lines(trace.events),
        TABLES: _lines(
            {
                _label(key.name, key.rank): [list(row) for row in rows]
                for key, rows in trace.tables.items()
            },
            "tables",
        ),
        PROJECTION_FILE: safetensors_save({"projections": projections}),
    }


def records_digest(trace: Trace) -> str:
    """Digest of a trace's records: of the `files` that the head of its folder lists."""
    files = {name: digest(content) for name, content in encode_trace(trace).items()}
    return digest(encode_json(files))


def save_trace(trace: Trace, folder: Path) -> None:
    """Writes a trace folder; a reader sees it whole or not at all."""
    contents = encode_trace(trace)
    for name, content in contents.items():
        write_atomically(folder / name, content)
    head = {
        "schema": SCHEMA,
        "case": trace.case,
        "provenance": dict(trace.provenance),
        "files": {name: digest(content) for name, content in contents.items()},
    }
    write_atomically(folder / HEAD, encode_json(head))


def load_trace(folder: Path) -> Trace:
    """Reads and verifies a trace folder.

    Args:
        folder: what `save_trace` wrote.

    Returns:
        The trace.

    Raises:
        DamagedFileError: a file is missing, altered, oversized or malformed; its path comes first.
    """
    path = folder / HEAD
    head = decode_json(read_file(path), path)
    check_schema(head, path)
    files = _mapping(head.get("files"), path, "files")
    return decode_trace(
        str(head.get("case")),
        _mapping(head.get("provenance"), path, "provenance"),
        {
            name: (folder / name, read_verified(folder / name, files.get(name)))
            for name in (CURVES, EVENTS, TABLES, PROJECTION_FILE)
        },
    )


def read_verified(path: Path, expected: object, kept: Mapping[Path, bytes] | None = None) -> bytes:
    """Reads a file and compares it with its recorded digest.

    Args:
        path: of the file.
        expected: its digest.
        kept: contents by path, which are then read instead.

    Returns:
        Its content.

    Raises:
        DamagedFileError: missing, too large, or changed since it was recorded.
    """
    if kept is None:
        binary = path.suffix != ".json"
        content = read_file(path, MAX_BINARY_BYTES if binary else MAX_JSON_BYTES)
    elif path in kept:
        content = kept[path]
    else:
        raise DamagedFileError(f"{path}: missing")
    if digest(content) != expected:
        raise DamagedFileError(f"{path}: damaged: its content is not what was recorded")
    return content


def decode_trace(
    case: str, provenance: Mapping[str, Any], files: Mapping[str, tuple[Path, bytes]]
) -> Trace:
    """Builds a trace from the contents of its files.

    Args:
        case: name of the case.
        provenance: from the head.
        files: name -> (path for messages, content).

    Returns:
        The trace.

    Raises:
        DamagedFileError: malformed content; the message begins with the file's path.
    """
    curves: dict[CurveKey, dict[int, float]] = {}
    phases: dict[CurveKey, str] = {}
    path, content = files[CURVES]
    for name, series in _section(content, path, "curves").items():
        entry = _mapping(series, path, name)
        steps, values = entry.get("steps"), entry.get("values")
        if not isinstance(steps, list) or not isinstance(values, list) or len(steps) != len(values):
            raise DamagedFileError(f"{path}: curve {name!r}: steps and values don't match")
        key = CurveKey(*_named(name, path))
        if key in curves:
            raise DamagedFileError(f"{path}: curve {name!r}: another label names the same curve")
        curves[key] = {
            _integer(s, path): to_float(v, path) for s, v in zip(steps, values, strict=True)
        }
        if len(curves[key]) != len(steps):
            raise DamagedFileError(f"{path}: curve {name!r}: a step twice")
        phase = entry.get("phase")
        if phase not in PHASES:
            raise DamagedFileError(f"{path}: curve {name!r}: no phase {reprlib.repr(phase)}")
        phases[key] = phase
    path, content = files[TABLES]
    tables: dict[TableKey, Sequence[Row]] = {}
    for name, rows in _section(content, path, "tables").items():
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise DamagedFileError(f"{path}: table {name!r}: expected rows")
        table = TableKey(*_named(name, path))
        if table in tables:
            raise DamagedFileError(f"{path}: table {name!r}: another label names the same table")
        tables[table] = rows
    projections = _projections(*files[PROJECTION_FILE])
    events = list(_events(*files[EVENTS], projections))
    if len({event.key for event in events}) != len(events):
        raise DamagedFileError(f"{files[EVENTS][0]}: a record twice")
    return Trace(case, provenance, events, curves, phases, tables)


def _label(name: str, rank: int) -> str:
    """What a curve or a table is called in a file."""
    return f"{name}@{rank}" if rank or _RANKED.fullmatch(name) else name


def _named(label: str, path: Path) -> tuple[str, int]:
    """The name and the rank that a label is of."""
    ranked = _RANKED.fullmatch(_name(label, path))
    return (ranked[1], int(ranked[2])) if ranked else (label, 0)


def _lines(entries: Mapping[str, Any], section: str) -> bytes:
    """One entry a line, so that a text diff shows what changed."""
    rows = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(jsonable(value), allow_nan=False)}"
        for name, value in entries.items()
    )
    return f'{{"schema": {SCHEMA}, "{section}": {{\n{rows}\n}}}}\n'.encode()


def _event_lines(events: Iterable[Event]) -> bytes:
    rows = []
    for event in events:
        key, value = event.key, event.value
        place = [key.step, key.micro_batch, PHASES.index(key.phase), key.module, key.tensor]
        place += [key.rank, key.occurrence]
        if isinstance(value, Sketch):
            place += [_SKETCH, value.dtype, list(value.shape), value.norm, value.mean]
            place += [value.abs_max, value.digest]
        elif isinstance(value, HeldInvariant):
            place += [_DISCRETE, value.to_json()]
        else:
            place += [_PLAIN if HeldInvariant.from_json(value) else _DISCRETE, value]
        rows.append(json.dumps(jsonable(place), allow_nan=False))
    listed = ",\n".join(rows)
    return f'{{"schema": {SCHEMA}, "events": [\n{listed}\n]}}\n'.encode()


def _events(path: Path, content: bytes, projections: np.ndarray[Any, Any]) -> Iterable[Event]:
    document = decode_json(content, path)
    check_schema(document, path)
    rows = document.get("events")
    if not isinstance(rows, list):
        raise DamagedFileError(f"{path}: no list of events")
    taken = 0
    for number, row in enumerate(rows):
        try:
            step, micro_batch, phase, module, tensor, rank, occurrence, kind, *rest = row
            key = Key(
                _integer(step, path),
                _integer(micro_batch, path),
                PHASES[_integer(phase, path)],
                _name(module, path),
                _name(tensor, path),
                _integer(rank, path),
                _integer(occurrence, path),
            )
            if kind in (_DISCRETE, _PLAIN):
                (value,) = rest
                invariant = HeldInvariant.from_json(value) if kind == _DISCRETE else None
                yield Event(key, invariant or value)
                continue
            if kind != _SKETCH:
                raise ValueError(f"unknown kind {reprlib.repr(kind)}")
            dtype, shape, norm, mean, abs_max, content_digest = rest
            yield Event(
                key,
                Sketch(
                    dtype=_name(dtype, path),
                    shape=tuple(_integer(n, path) for n in shape),
                    norm=to_float(norm, path),
                    mean=to_float(mean, path),
                    abs_max=to_float(abs_max, path),
                    digest=_name(content_digest, path),
                    projections=tuple(float(p) for p in projections[taken]),
                ),
            )
            taken += 1
        except DamagedFileError:
            raise
        except (ValueError, TypeError, IndexError) as error:
            raise DamagedFileError(f"{path}: event {number}: {error}") from error
    if taken != len(projections):
        raise DamagedFileError(f"{path}: {taken} sketches, but {len(projections)} projections")


def _projections(path: Path, content: bytes) -> np.ndarray[Any, Any]:
    """Reads the one tensor of a safetensors file, whose header is bounded JSON."""
    try:
        (length,) = struct.unpack_from("<Q", content)
        if length > 4096:
            raise ValueError(f"a header of {length} bytes")
        entry = decode_json(content[8 : 8 + length], path)["projections"]
        data = content[8 + length :]
        rows = len(data) // (4 * PROJECTIONS)
        expected = {"dtype": "F32", "shape": [rows, PROJECTIONS], "data_offsets": [0, len(data)]}
        if entry != expected:
            raise ValueError(f"expected F32 [n, {PROJECTIONS}]")
        return np.frombuffer(data, dtype="<f4").reshape(rows, PROJECTIONS)
    except DamagedFileError:
        raise
    except (ValueError, KeyError, TypeError, struct.error, AttributeError) as error:
        raise DamagedFileError(f"{path}: not a file of projections: {error}") from error


def _section(content: bytes, path: Path, name: str) -> Mapping[str, Any]:
    document = decode_json(content, path)
    check_schema(document, path)
    return _mapping(document.get(name), path, name)


def _mapping(value: object, path: Path, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DamagedFileError(f"{path}: {name!r}: expected an object")
    return value


def _integer(value: object, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DamagedFileError(f"{path}: expected an integer, found {reprlib.repr(value)}")
    return value


def _name(value: object, path: Path) -> str:
    if not isinstance(value, str):
        raise DamagedFileError(f"{path}: expected a name, found {type(value).__name__}")
    if len(value) > MAX_NAME:
        raise too_much(path, f"a name of {len(value):,} characters", MAX_NAME)
    return value
