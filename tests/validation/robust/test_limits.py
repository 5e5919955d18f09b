"""Hostile files cost seconds and some memory at most, and are refused by name with their limit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from validation.config import CaseError, read_declaration
from validation.files import DamagedFileError, decode_json, digest, encode_json, read_file
from validation.limits import MAX_JSON_VALUES, MAX_NAME, MAX_TOML_BYTES
from validation.trace import Trace, load_trace
from validation.trace.storage import CURVES, EVENTS, HEAD, TABLES, encode_trace

SIZE = 58 * 2**20
SECONDS = 20.0  # of processor time; before there were limits 30 and more, and 1.6 GB
MEMORY = 700 * 2**20


def trace_folder(folder: Path, name: str, content: bytes) -> Path:
    """A trace whose file is another, its digests made right; returns that file."""
    files = {**encode_trace(Trace("tiny")), name: content}
    folder.mkdir()
    for file, its in files.items():
        (folder / file).write_bytes(its)
    digests = {file: digest(its) for file, its in files.items()}
    head = {"schema": 1, "case": "tiny", "provenance": {}, "files": digests}
    (folder / HEAD).write_bytes(encode_json(head))
    return folder / name


def table(rows: bytes) -> bytes:
    """A file of one table."""
    return b'{"schema": 1, "tables": {"t": [' + rows + b"]}}"


def event(value: bytes) -> bytes:
    """A row of the file of events."""
    return b'[1,0,0,"m","t",0,0,"d",' + value + b"]"


HOSTILE = {
    "a row": (TABLES, lambda: table(b"[" + b"1," * (SIZE // 2) + b"1" + b"]")),
    "rows": (TABLES, lambda: table(b"[]," * (SIZE // 3) + b"[]")),
    "objects": (TABLES, lambda: table(b"[" + b"{}," * (SIZE // 3) + b"{}" + b"]")),
    "tables": (
        TABLES,
        lambda: (
            b'{"schema": 1, "tables": {'
            + b",".join(b'"%d":[]' % i for i in range(SIZE // 12))
            + b"}}"
        ),
    ),
    "events": (
        EVENTS,
        lambda: (
            b'{"schema": 1, "events": ['
            + (event(b"[]") + b",") * (SIZE // 32)
            + event(b"[]")
            + b"]}"
        ),
    ),
    "points": (
        CURVES,
        lambda: (
            b'{"schema": 1, "curves": {"t": {"phase": "forward", "steps": ['
            + b",".join(b"%d" % i for i in range(SIZE // 12))
            + b'], "values": ['
            + b"1e0," * (SIZE // 12)
            + b"1"
            + b"]}}}"
        ),
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_58_megabytes_of_anything_are_refused_at_once(tmp_path: Path, kind: str) -> None:
    name, content = HOSTILE[kind]
    path = trace_folder(tmp_path / "trace", name, content())
    began = time.process_time()
    with pytest.raises(DamagedFileError) as caught:
        load_trace(tmp_path / "trace")
    assert time.process_time() - began < 2
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert f"more than {MAX_JSON_VALUES:,}" in said
    assert "trace fewer steps" in said


_LOAD = """\
import sys
from pathlib import Path
from validation.files import DamagedFileError
from validation.trace import load_trace
try:
    load_trace(Path(sys.argv[1]))
except DamagedFileError as error:
    print(error)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.parametrize(
    "content",
    [
        table(b"[]," * (MAX_JSON_VALUES // 2 - 9) + b"[]"),
        table(b"[" + b"{}," * (MAX_JSON_VALUES // 2 - 9) + b"{}" + b"]"),
        table(b'["' + b"x" * SIZE + b'"]'),
        table(b"[1." + b"1" * SIZE + b"]"),
        table(b"[" + b"[" * 10**6 + b"]" * 10**6 + b"]"),
        table(b"[" + b"9" * SIZE + b"]"),
    ],
    ids=["rows", "objects", "a text", "a number", "nested", "an integer"],
)
def test_what_is_just_within_limits_costs_little(tmp_path: Path, content: bytes) -> None:
    trace_folder(tmp_path / "trace", TABLES, content)
    process = subprocess.Popen(
        [sys.executable, "-c", _LOAD, tmp_path / "trace"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    assert used.ru_utime + used.ru_stime < SECONDS
    assert process.stdout is not None
    *said, peak = process.stdout.read().splitlines()
    assert int(peak) * 1024 < MEMORY
    assert len("".join(said)) < 1000  # no message repeats what it complains of


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (TABLES, b'{"schema": 1, "tables": {"' + b"x" * (MAX_NAME + 1) + b'": []}}'),
        (
            EVENTS,
            b'{"schema": 1, "events": [[1,0,0,"' + b"m" * 2000 + b'","t",0,0,"d",1]]}',
        ),
        (EVENTS, b'{"schema": 1, "events": [[1,0,0,["m"],"t",0,0,"d",1]]}'),
    ],
)
def test_names_are_short_texts(tmp_path: Path, file: str, content: bytes) -> None:
    path = trace_folder(tmp_path / "trace", file, content)
    with pytest.raises(DamagedFileError, match="name") as caught:
        load_trace(tmp_path / "trace")
    assert str(caught.value).startswith(f"{path}: ")


def test_files_beyond_their_limits_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(DamagedFileError, match="more than"):
        read_file(path)
    with pytest.raises(DamagedFileError, match="bytes of JSON, more than"):
        decode_json(b" " * (2**26 + 1), path)
    toml = tmp_path / "pyproject.toml"
    toml.touch()
    os.truncate(toml, MAX_TOML_BYTES + 1)
    with pytest.raises(CaseError, match="more than"):
        read_declaration(tmp_path)
