"""`synth_harmony_v1`, SYNTH as Harmony conversations: Parquet and JSONL, the same documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from vpmoe.data.build import build_dataset
from vpmoe.data.errors import DataError
from vpmoe.data.profiles import get_profile

MakeRows = Callable[..., list[dict[str, str]]]
WriteRows = Callable[..., Path]
EncodeFile = Callable[..., int]
_METADATA = {"language": "en", "exercise": "mcq", "model": "m", "constraints": None}
_SCHEMA = pyarrow.schema(
    [
        (name, pyarrow.string())
        for name in (
            *("messages_json", "metadata_json", "synth_id", "language", "exercise", "model"),
            *("constraints", "seed_license", "query_seed_url"),
        )
    ]
)


def _messages(row: dict[str, str]) -> list[dict[str, Any]]:
    """A SYNTH row as the schema's converter writes it."""

    def text(role: str, name: str, **more: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": row[name]}]} | more

    return [
        *({**message} for message in get_profile("synth_kd_v1").messages),
        text("user", "query"),
        text("assistant", "synthetic_reasoning", channel="analysis"),
        text("assistant", "synthetic_answer", channel="final"),
    ]


def _packed(row: dict[str, str]) -> dict[str, Any]:
    """The schema's row, ASCII escapes and all."""
    metadata = {"synth_id": row["synth_id"]} | _METADATA
    packed: dict[str, Any] = {name: metadata.get(name) for name in _SCHEMA.names[2:]}
    packed["messages_json"] = json.dumps({"messages": _messages(row)}, ensure_ascii=True)
    packed["metadata_json"] = json.dumps(metadata, ensure_ascii=True)
    return packed


def _documents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for split in ("train", "valid")
        for path in sorted((folder / split).iterdir())
    }


def test_parquet_and_jsonl_give_the_documents_of_the_synth_rows(
    tmp_path: Path, make_rows: MakeRows, write_rows: WriteRows, vocabulary: Path
) -> None:
    rows = make_rows(16)
    packed = [_packed(row) for row in rows]
    inputs = {
        "rows": write_rows(tmp_path / "rows.jsonl", rows),
        "packed": write_rows(tmp_path / "packed.jsonl", packed),
        # The converter's own JSONL.
        "open": write_rows(
            tmp_path / "open.jsonl",
            [
                {"messages": _messages(row), "metadata": {"synth_id": row["synth_id"]} | _METADATA}
                for row in rows
            ],
        ),
        "lists": write_rows(
            tmp_path / "lists.jsonl",
            [
                p | {"messages_json": json.dumps(_messages(r))}
                for p, r in zip(packed, rows, strict=True)
            ],
        ),
        "parquet": tmp_path / "synth_harmony_shard_00.parquet",
        "no_column": tmp_path / "no_column.parquet",
    }
    table = pyarrow.Table.from_pylist(packed, schema=_SCHEMA)
    pyarrow.parquet.write_table(table, inputs["parquet"], row_group_size=7, compression="zstd")
    pyarrow.parquet.write_table(table.drop_columns(["synth_id"]), inputs["no_column"])
    built = {}
    for name, path in inputs.items():
        build_dataset(
            [path],
            tmp_path / name,
            profile="synth_kd_v1",
            valid_fraction="0.3",
            vocabulary=vocabulary,
        )
        built[name] = _documents(tmp_path / name)
    for name in inputs:
        assert built[name] == built["rows"], name


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"messages_json": "{broken"}, "`messages_json`: no JSON"),
        ({"messages_json": '{"messages": 3}'}, "`messages` must be a list, found 3"),
        ({"messages_json": "{}"}, "`messages` must be a list, found None"),
        ({"messages_json": '"x"'}, "`messages` must be a list"),
        ({"messages_json": "[]"}, "`messages` is empty"),
        ({"messages_json": '{"messages": [], "tools": [1]}'}, "unknown key `tools`"),
        ({"messages_json": '{"messages": [], "messages": []}'}, "`messages` occurs twice"),
        ({"messages_json": f"[{'9' * 5000}]"}, "an integer of 5000 digits"),
        ({"messages_json": '[{"role": "\\ud800"}]'}, "lone surrogate"),
        ({"messages_json": "[" * 5000 + "]" * 5000}, "nested"),
        ({"synth_id": None, "metadata_json": "{"}, "`metadata_json`: no JSON"),
        ({"synth_id": None, "metadata_json": '{"synth_id": [1]}'}, "`synth_id` must be a text"),
    ],
)
def test_bad_rows_are_named_in_both_formats(
    tmp_path: Path,
    make_rows: MakeRows,
    write_rows: WriteRows,
    encode_file: EncodeFile,
    change: dict[str, str | None],
    match: str,
) -> None:
    rows = [_packed(row) for row in make_rows(3)]
    rows[1] |= change
    parquet = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_SCHEMA), parquet)
    for path in (parquet, write_rows(tmp_path / "rows.jsonl", rows)):
        with pytest.raises(DataError, match=rf"{path.name}:2: .*{match}"):
            encode_file(path)


def test_messages_json_that_is_no_text_is_refused(tmp_path: Path, encode_file: EncodeFile) -> None:
    path = tmp_path / "rows.parquet"
    for value in (b"[]", 3, ["x"]):
        pyarrow.parquet.write_table(pyarrow.table({"messages_json": [value]}), path)
        with pytest.raises(DataError, match=r"rows\.parquet:1: `messages_json` must be a JSON"):
            encode_file(path)
