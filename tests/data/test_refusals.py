"""Whatever is wrong with an input, the refusal is one line that names file and, if any, line."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from vpmoe.cli import main
from vpmoe.data import encode_pool
from vpmoe.data.errors import DataError
from vpmoe.data.rows import Block, Position, open_input, read_blocks

MakeRows = Callable[..., list[dict[str, str]]]
_SYNTH = '{"query": "q", "synthetic_reasoning": "r", "synthetic_answer": "a"}'
_CHAT = '{"messages": [{"role": "assistant", "channel": "final", "content": "x"}]}'


def _synth(field: str, value: str) -> bytes:
    return re.sub(rf'("{field}": )"."', lambda m: m[1] + value, _SYNTH).encode()


def _with(member: str, row: str = _SYNTH) -> bytes:
    return row.replace("{", "{" + member + ", ", 1).encode()


def _deep(depth: int) -> str:
    return "[" * depth + "]" * depth


_LINES = {
    "no JSON": (b"{broken", "no JSON: .* at character 1"),
    "two values": (_SYNTH.encode() * 2, "no JSON: Extra data"),
    "half a row": (_SYNTH.encode()[:40], "no JSON"),
    "no object": (b"[1]", "must be a JSON object"),
    "bad UTF-8": (b'{"query": "\xff"}', "invalid UTF-8 at byte 11"),
    "UTF-16": (_SYNTH.encode("utf-16-le"), "no JSON|invalid UTF-8"),
    "Latin-1": (_synth("query", '"é"').decode().encode("latin-1"), "invalid UTF-8 at byte 11"),
    "a NUL": (_synth("query", '"\0"'), "no JSON: Invalid control character"),
    "NULs": (b"\0" * 50, "no JSON"),
    "lone surrogate": (_synth("query", '"\\ud800"'), r"lone surrogate U\+D800 at character 0"),
    "surrogate id": (_with('"synth_id": "\\udfff"'), r"lone surrogate U\+DFFF"),
    "surrogate in messages": (_CHAT.replace('"x"', '"\\ud83d"').encode(), "lone surrogate"),
    "nested text": (_synth("query", _deep(900)), "`query` must be a text, found|nested"),
    "nested messages": (_CHAT.replace('"x"', _deep(3000)).encode(), "nested"),
    "nested beyond reading": (_synth("query", _deep(100_000)), "nested too deep"),
    "long integer": (_synth("query", "9" * 5000), "an integer of 5000 digits is too long"),
    "long integer aside": (_with(f'"words": -{"9" * 5000}'), "an integer of 5000 digits"),
    "long id": (_with(f'"synth_id": {"9" * 5000}'), "an integer of 5000 digits"),
    "NaN": (_with('"score": NaN'), "NaN is no JSON number"),
    "Infinity": (_with('"score": [-Infinity]'), "-Infinity is no JSON number"),
    "infinite number": (_CHAT.replace('"x"', '"x", "w": 1e999').encode(), "inf is no JSON number"),
    "key twice": (_with('"query": "lost"'), "the key `query` occurs twice"),
    "key twice within": (_CHAT.replace('"role"', '"role": "x", "role"').encode(), "`role` occurs"),
    "number": (_synth("query", "7"), "`query` must be a text, found 7"),
    "list": (_synth("synthetic_answer", "[1]"), r"`synthetic_answer` must be a text, found \[1\]"),
    "true": (_synth("query", "true"), "`query` must be a text, found True"),
    "no field": (b'{"query": "q", "synthetic_reasoning": "r"}', "no field `synthetic_answer`"),
    "empty object": (b"{}", "no field `query`"),
    "id of no type": (_with('"synth_id": 1.5'), "`synth_id` must be a text, found 1.5"),
    "id of metadata": (_with('"metadata": {"synth_id": true}'), "`synth_id` must be a text"),
    "messages of no type": (b'{"messages": {"role": "user"}}', "`messages` must be a list"),
    "messages as text": (b'{"messages": "[]"}', "`messages` must be a list"),
    "no messages": (b'{"messages": []}', "`messages` is empty"),
    "message of no type": (b'{"messages": [3]}', "message 0 is no object: 3"),
    "content of no type": (_CHAT.replace('"x"', "3").encode(), "message 0: `content`"),
    "role of no type": (_CHAT.replace('"assistant"', "[1]").encode(), "no assistant message"),
    "unknown role": (
        _CHAT.replace("[", '[{"role": "robot", "content": "x"}, ', 1).encode(),
        "message 0: unknown role 'robot'",
    ),
}


@pytest.mark.parametrize("command", ["build", "render"])
@pytest.mark.parametrize("kind", _LINES)
def test_a_bad_line_is_named(
    tmp_path: Path,
    vocabulary: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    kind: str,
) -> None:
    line, match = _LINES[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([_SYNTH.encode(), b"", line, _SYNTH.encode()]))
    words = ["data", command, "--input", str(path), "--vocabulary", str(vocabulary)]
    words += ["--output", str(tmp_path / "out")] if command == "build" else ["--row", "2"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert re.match(rf"vpmoe data: {re.escape(str(path))}:3: .*{match}", error), error
    assert error.count("\n") == 1
    assert len(error) < 600
    assert not (tmp_path / "out" / "manifest.json").exists()


def _parquet(path: Path, columns: dict[str, Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


_GOOD = {"query": ["q"] * 4, "synthetic_reasoning": ["r"] * 4, "synthetic_answer": ["a"] * 4}
_BYTES = pyarrow.array([b"a", b"b", b"\xff", b"d"])
_COLUMNS = {
    "number": ({"query": [1, 2, 3, 4]}, 1, "`query` must be a text, found 1"),
    "bytes": ({"query": _BYTES}, 1, "`query` must be a text, found b'a'"),
    "list": ({"query": [["q"]] * 4}, 1, r"`query` must be a text, found \['q'\]"),
    "time": (
        {"query": pyarrow.array([None, None, 2**62, None], pyarrow.timestamp("ms"))},
        3,
        "`query`: ",
    ),
    "bad UTF-8": ({"query": _BYTES.view(pyarrow.string())}, 3, "invalid UTF-8"),
    "id of no type": ({"synth_id": [1.5, 2, 3, 4]}, 1, "`synth_id` must be a text, found 1.5"),
    "messages as text": ({"messages": ["[]"] * 4}, 1, "`messages` must be a list"),
}


@pytest.mark.parametrize("kind", _COLUMNS)
def test_a_bad_row_of_parquet_is_named(
    tmp_path: Path, encode_file: Callable[..., int], kind: str
) -> None:
    columns, row, match = _COLUMNS[kind]
    path = tmp_path / "rows.parquet"
    _parquet(path, columns if "messages" in columns else _GOOD | columns)
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}:{row}: .*{match}"):
        encode_file(path)


def _file(path: Path, content: bytes = b"") -> Path:
    path.write_bytes(content)
    return path


def _link(path: Path) -> Path:
    path.symlink_to("nowhere.jsonl")
    return path


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _cut_parquet(path: Path) -> Path:
    content = _parquet(path, _GOOD).read_bytes()
    return _file(path, content[: len(content) // 2])


def _two_of_one(path: Path) -> Path:
    table = pyarrow.Table.from_arrays([pyarrow.array(["q"])] * 2, names=["query", "query"])
    pyarrow.parquet.write_table(table, path)
    return path


_PACKED = gzip.compress(_SYNTH.encode() * 100)
_FILES: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "missing": ("a.jsonl", lambda path: path, "cannot be read: No such file"),
    "a folder": ("a.jsonl", _folder, "cannot be read: it is a folder"),
    "a Parquet folder": ("a.parquet", _folder, "cannot be read: it is a folder"),
    "a broken link": ("a.jsonl", _link, r"No such file.*a link to nowhere\.jsonl"),
    "a pipe": ("a.jsonl", _fifo, "it is no regular file"),
    "below a file": ("b/a.jsonl", lambda p: _file(p.parent) / p.name, "Not a directory"),
    "empty": ("a.jsonl", _file, "no usable row"),
    "blank": ("a.jsonl", lambda path: _file(path, b"\n \n"), "no usable row"),
    "empty Parquet": ("a.parquet", _file, "no whole Parquet file"),
    "cut Parquet": ("a.parquet", _cut_parquet, "no whole Parquet file"),
    "JSON as Parquet": ("a.parquet", lambda p: _file(p, _SYNTH.encode()), "no whole Parquet file"),
    "gzip": ("a.jsonl.gz", lambda path: _file(path, _PACKED), "packed with gzip; unpack"),
    "cut gzip": ("a.jsonl", lambda path: _file(path, _PACKED[:30]), "packed with gzip"),
    "zstd": ("a.jsonl", lambda path: _file(path, b"\x28\xb5\x2f\xfd00"), "packed with zstd"),
    "no column": ("a.parquet", lambda p: _parquet(p, {"text": ["x"]}), "no column `query`.*text"),
    "a column twice": ("a.parquet", _two_of_one, "the column `query` occurs twice"),
}


@pytest.mark.parametrize("command", ["build", "render"])
@pytest.mark.parametrize("kind", _FILES)
def test_a_bad_file_is_named(
    tmp_path: Path,
    vocabulary: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    kind: str,
) -> None:
    name, make, match = _FILES[kind]
    path = make(tmp_path / name)
    words = ["data", command, "--input", str(path), "--vocabulary", str(vocabulary)]
    words += ["--output", str(tmp_path / "out")] if command == "build" else []
    assert main(words) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert re.search(match, error), error
    assert error.count("\n") == 1


def test_a_file_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read anything: the system call says what it would say to others."""
    path = _file(tmp_path / "a.jsonl", _SYNTH.encode())

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read: Permission denied"):
        open_input(path)


def test_a_name_with_a_nul_is_refused() -> None:
    with pytest.raises(DataError, match=r"a\\x00b.*null"):
        open_input(Path("a\0b"))


def test_two_files_of_one_name_are_told_apart(
    tmp_path: Path, encode_file: Callable[..., int]
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        _file(tmp_path / folder / "rows.jsonl", b"{" if folder == "two" else _SYNTH.encode())
    encode_file(tmp_path / "one" / "rows.jsonl")
    with pytest.raises(DataError, match=r"two/rows\.jsonl:1: no JSON"):
        encode_file(tmp_path / "two" / "rows.jsonl")


@pytest.mark.parametrize(
    ("name", "spoil", "match"),
    [
        ("manifest.json", b"[" * 100_000, "damaged"),
        ("manifest.json", b"{}", "damaged"),
        ("manifest.json", b"", "damaged"),
        ("manifest.json", b"[1]", "damaged"),
        ("manifest.json", None, "Is a directory"),
        ("train/shard_00_tokens.bin", None, "no file"),
        ("train/shard_00_tokens.idx", None, "no file"),
        ("train/shard_00_documents.bin", b"", "truncated"),
    ],
)
def test_a_bad_file_of_a_dataset_is_named(
    built: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    spoil: bytes | None,
    match: str,
) -> None:
    import shutil

    dataset = Path(shutil.copytree(built, tmp_path / "dataset"))
    (dataset / name).unlink()
    if spoil is None:
        (dataset / name).mkdir()
    else:
        (dataset / name).write_bytes(spoil)
    for command in ("verify", "inspect"):
        assert main(["data", command, str(dataset)]) == 2
        error = capsys.readouterr().err
        assert str(dataset / name) in error
        assert re.search(match, error), error
        assert error.count("\n") == 1


@pytest.mark.parametrize("state", [b"[" * 100_000, b"[]", b"{", b'{"identity": {}}'])
def test_a_damaged_state_of_a_build_is_named(
    tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str], state: bytes
) -> None:
    rows = _file(tmp_path / "rows.jsonl", _SYNTH.encode())
    (tmp_path / "out").mkdir()
    path = _file(tmp_path / "out" / ".build.json", state)
    words = ["--input", str(rows), "--output", str(tmp_path / "out")]
    assert main(["data", "build", *words, "--vocabulary", str(vocabulary)]) == 2
    error = capsys.readouterr().err
    assert f"{path}: damaged" in error
    assert error.count("\n") == 1


def test_a_killed_worker_is_named_with_its_rows(tmp_path: Path) -> None:
    path = _file(tmp_path / "rows.jsonl", _SYNTH.encode())
    blocks = ((0, block) for block in read_blocks(open_input(path), Position()))

    class _Pool:
        def submit(self, *_: Any) -> Any:
            raise BrokenProcessPool

    results = encode_pool._in_order(_Pool(), 2, blocks)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: a worker was killed.*--workers"):
        next(results)


def test_json_that_is_unusual_and_whole_is_taken(
    tmp_path: Path, encode_file: Callable[..., int]
) -> None:
    rows = [
        _synth("query", '"\\u0000 \\ud83d\\ude00"'),
        _with(f'"words": {"9" * 4000}'),
        _with('"score": 1e999'),
        _with(f'"seed": {_deep(500)}'),
        _SYNTH.encode() + b"\r",
    ]
    assert encode_file(_file(tmp_path / "rows.jsonl", b"\n".join(rows))) == len(rows)
    assert isinstance(json.loads(_SYNTH), dict)


def test_blocks_hold_the_path_that_was_given(tmp_path: Path) -> None:
    path = _file(tmp_path / "rows.jsonl", _SYNTH.encode())
    (block,) = read_blocks(open_input(path), Position())
    assert isinstance(block, Block)
    assert block.path == path
