"""Bad input is a clear error that names file and line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from vpmoe.data import rows as rows_module
from vpmoe.data.encode import SynthRow
from vpmoe.data.errors import DataError
from vpmoe.data.rows import ParsedRow, Position, open_input, parse_block, read_blocks

MakeRows = Callable[..., list[dict[str, str]]]
WriteRows = Callable[..., Path]
_GOOD = b'{"query": "q", "synthetic_reasoning": "r", "synthetic_answer": "a"}'


def _read(path: Path, start: Position | None = None) -> list[ParsedRow]:
    blocks = read_blocks(open_input(path), start or Position())
    return [row for block in blocks for row in parse_block(block)[0]]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (b"{broken", "no JSON"),
        (b"[1]", "JSON object"),
        (b'{"query": "\xff"}', "invalid UTF-8 at byte 11"),
        (b'{"query": "q", "synthetic_reasoning": "r"}', "no field `synthetic_answer`"),
        (_GOOD.replace(b'"q"', b"7"), "`query` must be a text, found 7"),
        (_GOOD.replace(b'"q"', b'"\\ud800"'), r"lone surrogate U\+D800 at character 0"),
        (_GOOD.replace(b"{", b'{"synth_id": [], '), "`synth_id` must be a text"),
        (b'{"messages": "x"}', "`messages` must be a list"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_the_bad_line_is_named(tmp_path: Path, line: bytes, match: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([_GOOD, b"", line, _GOOD]))
    with pytest.raises(DataError, match=rf"rows\.jsonl:3: .*{match}"):
        _read(path)


def test_blank_lines_bom_crlf_and_a_missing_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([_GOOD, b"", b"  ", _GOOD]))
    rows = _read(path)
    assert [row.line for row in rows] == [1, 4]
    assert [row.row_id for row in rows] == ["rows.jsonl:1", "rows.jsonl:4"]
    assert rows[0].row == SynthRow("q", "r", "a")


@pytest.mark.parametrize("size", [1, 70, 1000])
def test_blocks_and_resumption_lose_nothing(
    tmp_path: Path,
    make_rows: MakeRows,
    write_rows: WriteRows,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    monkeypatch.setattr(rows_module, "_BLOCK_BYTES", size)
    monkeypatch.setattr(rows_module, "_PARQUET_ROWS", max(1, size // 70))
    rows = make_rows(23)
    jsonl = write_rows(tmp_path / "rows.jsonl", rows)
    parquet = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet, row_group_size=5)
    for path in (jsonl, parquet):
        file = open_input(path)
        whole = _read(path)
        assert [row.row_id for row in whole] == [row["synth_id"] for row in rows]
        assert [row.line for row in whole] == list(range(1, 24))
        blocks = list(read_blocks(file, Position()))
        assert blocks[-1].after.offset == file.extent
        for number, block in enumerate(blocks):
            rest = [row for later in blocks[number + 1 :] for row in parse_block(later)[0]]
            assert _read(path, block.after) == rest


def test_a_row_of_10_megabytes(tmp_path: Path, write_rows: WriteRows) -> None:
    text = "wörd " * 1_700_000
    row = {"query": text, "synthetic_reasoning": "r", "synthetic_answer": "a"}
    path = write_rows(tmp_path / "rows.jsonl", [row, row | {"query": "q"}])
    assert path.stat().st_size > 10_000_000
    big, small = _read(path)
    assert isinstance(big.row, SynthRow)
    assert (big.row.query, big.line, small.line) == (text, 1, 2)


def test_parquet_that_is_broken_or_null(tmp_path: Path, make_rows: MakeRows) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(make_rows(200)), path)
    content = path.read_bytes()
    for broken in (content[:-100], content[: len(content) // 2], b"PAR1", b""):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"rows\.parquet: no whole Parquet file"):
            _read(path)
    at = content.index(b"PAR1") + 30
    path.write_bytes(
        content[:at] + bytes(byte ^ 255 for byte in content[at : at + 400]) + content[at + 400 :]
    )
    with pytest.raises(DataError, match=r"rows\.parquet"):
        _read(path)


def test_what_identifies_an_input_is_not_its_folder(
    tmp_path: Path, make_rows: MakeRows, write_rows: WriteRows
) -> None:
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files.append(open_input(write_rows(tmp_path / name / "rows.jsonl", make_rows(2))))
    assert (files[0].size, files[0].sha256) == (files[1].size, files[1].sha256)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: cannot be read: No such file"):
        open_input(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        open_input(tmp_path)


def test_numbers_as_ids(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(json.loads(_GOOD) | {"synth_id": 12}))
    assert _read(path)[0].row_id == "12"


def _large(size: int) -> dict[str, str]:
    return {"query": "q", "synthetic_reasoning": "r", "synthetic_answer": "a" * size}


@pytest.mark.parametrize("group", [1, 2, 7])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_row_that_is_too_large_is_named_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, group: int
) -> None:
    monkeypatch.setattr(rows_module, "MAX_ROW_BYTES", 2**20)
    # Of the average in a group of two rows it can be told, of seven not.
    rows = [_large(9)] * 7 + [_large(3 * 2**20)] + [_large(9)] * 6
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, path, row_group_size=group)
    first = 7 if (kind, group) == ("parquet", 2) else 8
    with pytest.raises(DataError, match=rf"{path}:{first}: .*of more than 1,048,576 bytes"):
        _read(path)
    monkeypatch.setattr(rows_module, "MAX_ROW_BYTES", 4 * 2**20)
    assert len(_read(path)) == 14


def test_a_large_column_that_is_not_read_is_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "MAX_ROW_BYTES", 2**20)
    path = tmp_path / "rows.parquet"
    row = {**_large(9), "words": "w" * (2 * 2**20)}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    assert len(_read(path)) == 1


def test_a_key_that_occurs_twice_among_many_is_found_at_once(tmp_path: Path) -> None:
    keys = ", ".join(f'"k{number}": 0' for number in range(200_000))
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{{keys}, "k199999": 0}}')
    began = time.process_time()
    with pytest.raises(DataError, match="the key `k199999` occurs twice"):
        _read(path)
    assert time.process_time() - began < 5
