"""Rows and files that must be refused, by name, and what a refusal says of each."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from validation.running.recorder import Recorder
from vpmoe.cases.data.refusing import record_refusal
from vpmoe.data import rows as rows_module
from vpmoe.data.encode_block import BlockEncoder
from vpmoe.data.row_content import CHAT_FORMATS, ChatOptions
from vpmoe.data.rows import Position, open_input, read_blocks
from vpmoe.runtime.patches import replaced

_GOOD = {"query": "q", "synthetic_reasoning": "r", "synthetic_answer": "a"}
_USER = {"role": "user", "content": "?"}
_SAID = {"role": "assistant", "channel": "final", "content": "x"}
_TOOL = {"type": "function", "function": {"name": "f", "description": "d"}}
_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_RESULT = {"role": "tool", "tool_call_id": "c", "content": "y"}


def _chat(*messages: Any, **beside: Any) -> dict[str, Any]:
    return {"messages": list(messages), **beside}


def _said(**changes: Any) -> dict[str, Any]:
    return _chat(_USER, _SAID | changes)


def _developer(tools: Any) -> dict[str, Any]:
    content = {"type": "developer_content", "tools": tools}
    return _chat({"role": "developer", "content": [content]}, _USER, _SAID)


def _system(**content: Any) -> dict[str, Any]:
    system = {"role": "system", "content": [{"type": "system_content", **content}]}
    return _chat(system, _USER, _SAID)


def _function(tool: Any) -> dict[str, Any]:
    return _developer({"functions": {"name": "functions", "tools": [tool]}})


def _asked(call: Any, *more: Any, **beside: Any) -> dict[str, Any]:
    return _chat(_USER, {"role": "assistant", "tool_calls": [call]}, *more, **beside)


def _deep(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


_LINES = {
    "no_json": b"{broken",
    "half": json.dumps(_GOOD).encode()[:40],
    "no_object": b"[1]",
    "bad_utf8": b'{"query": "\xff"}',
    "lone_surrogate": b'{"query": "a\\ud800", "synthetic_reasoning": "r", "synthetic_answer": "a"}',
    "surrogate_in_messages": b'{"messages": [{"role": "user", "content": "\\udc00"}]}',
    "surrogate_key": b'{"messages": [{"role": "user", "\\udc00": ["x"]}]}',
    "surrogate_id": b'{"query": "q", "synthetic_reasoning": "r", "synthetic_answer": "a", '
    b'"synth_id": "\\udfff"}',
    "long_integer": b'{"query": -' + b"9" * 5000 + b"}",
    "not_a_number": b'{"query": NaN}',
    "infinite": b'{"query": -Infinity}',
    "key_twice": b'{"query": "q", "query": "lost"}',
    "nested_too_deep": b'{"query": ' + b"[" * 100_000,
}
_HARMONY: Mapping[str, Any] = {
    "no_field": {"query": "q"},
    "number": _GOOD | {"query": 7},
    "list": _GOOD | {"synthetic_answer": ["a"]},
    "id_of_no_type": _GOOD | {"synth_id": 1.5},
    "id_true": _GOOD | {"metadata": {"synth_id": True}},
    "metadata_no_text": _GOOD | {"metadata_json": 3},
    "metadata_no_json": _GOOD | {"metadata_json": "{"},
    "two_conversations": _chat(_SAID, messages_json="[]"),
    "messages_no_list": {"messages": "[]"},
    "messages_json_no_text": {"messages_json": ["x"]},
    "messages_json_no_json": {"messages_json": "]"},
    "messages_json_key": {"messages_json": '{"messages": [], "x": 1}'},
    "no_messages": {"messages": []},
    "message_no_object": _chat(3),
    "unknown_column": _said() | {"system": "Be kind."},
    "tools_beside": _said() | {"tools": [_TOOL]},
    "no_assistant": _chat(_USER),
    "no_channel": _chat(_USER, {"role": "assistant", "content": "x"}),
    "commentary": _said(channel="commentary"),
    "thinking": _said(thinking="hm"),
    "unknown_key": _said(weight=0),
    "unknown_role": _chat({"role": "robot", "content": "x"}, _SAID),
    "no_content": _chat(_USER, {"role": "assistant", "channel": "final"}),
    "content_no_text": _said(content=3),
    "content_unknown": _said(content=[{"type": "image"}]),
    "content_key": _said(content=[{"type": "text", "text": "x", "y": 1}]),
    "text_missing": _said(content=[{"type": "text"}]),
    "channel_no_text": _chat(_USER | {"channel": 3}, _SAID),
    "recipient_no_text": _said(recipient=["x"]),
    "tool_without_name": _chat(_USER, {"role": "tool", "content": "x"}, _SAID),
    "infinite_number": _chat(_USER | {"name": 1e308 * 10}, _SAID),
    "integer_too_large": _chat(_USER | {"name": 10**400}, _SAID),
    "nested": _said(content=_deep(200)),
    "system_content_of_user": _chat(
        {"role": "user", "content": [{"type": "system_content"}]}, _SAID
    ),
    "developer_content_of_user": _chat(
        {"role": "user", "content": [{"type": "developer_content"}]}, _SAID
    ),
    "effort": _system(reasoning_effort="Extreme"),
    "identity": _system(model_identity=3),
    "system_key": _system(mood="good"),
    "channels_no_list": _system(channel_config={"valid_channels": "x", "channel_required": True}),
    "channels_no_text": _system(channel_config={"valid_channels": [1], "channel_required": True}),
    "channels_required": _system(channel_config={"valid_channels": []}),
    "namespace": _developer({"functions": [1]}),
    "namespace_name": _developer({"functions": {"tools": []}}),
    "namespace_tools": _developer({"functions": {"name": "functions", "tools": {}}}),
    "namespace_key": _developer({"f": {"name": "f", "tools": [], "more": 1}}),
    "tools_no_object": _developer([1]),
    "tool_no_object": _function("f"),
    "tool_name": _function({"description": "d"}),
    "tool_description": _function({"name": "f"}),
    "tool_key": _function({"name": "f", "description": "d", "strict": True}),
}
_OPENAI: Mapping[str, Any] = {
    "two_reasonings": _said(thinking="a", reasoning="b"),
    "reasoning_no_text": _said(thinking=["a"]),
    "unknown_key": _said(audio={"id": 1}),
    "unknown_key_of_user": _chat(_USER | {"image": "x"}, _SAID),
    "calls_no_list": _chat(_USER, {"role": "assistant", "tool_calls": {"a": 1}}),
    "two_kinds_of_calls": _chat(
        _USER, {"role": "assistant", "tool_calls": [_CALL], "function_call": {"name": "f"}}
    ),
    "call_no_object": _asked("f"),
    "call_no_name": _asked({"function": {"arguments": "{}"}}),
    "call_no_arguments": _asked({"function": {"name": "f"}}),
    "call_key": _asked(_CALL | {"more": 1}),
    "call_function_key": _asked({"function": {"name": "f", "arguments": "{}", "more": 1}}),
    "call_type": _asked(_CALL | {"type": "custom"}),
    "result_without_call": _asked(_CALL, _RESULT | {"tool_call_id": "other"}),
    "result_without_name": _chat(_USER, {"role": "tool", "content": "x"}),
    "result_key": _asked(_CALL, _RESULT | {"more": 1}),
    "result_without_content": _asked(_CALL, {"role": "tool", "tool_call_id": "c"}),
    "tools_no_list": _said() | {"tools": {"f": 1}},
    "tool_no_object": _said() | {"tools": [_TOOL, "f"]},
    "tool_no_name": _said() | {"tools": [{"function": {"description": "d"}}]},
    "tool_type": _said() | {"tools": [{"type": "web_search"}]},
    "tool_beside": _said() | {"tools": [_TOOL | {"more": 1}]},
    "developer_parts": _chat(
        {"role": "developer", "content": [{"type": "image"}]}, _SAID, tools=[_TOOL]
    ),
    "developer_tools": _chat(
        {
            "role": "developer",
            "content": [{"type": "developer_content", "tools": {"f": {"name": "f"}}}],
        },
        _SAID,
        tools=[_TOOL],
    ),
    "developer_text": _chat(
        {"role": "developer", "content": [{"type": "text", "text": "x", "y": 1}]},
        _SAID,
        tools=[_TOOL],
    ),
    "unknown_channel": _said(channel="thoughts"),
    "no_text": _chat(_USER, {"role": "assistant", "content": [{"type": "text"}]}),
}
# What is unusual and whole.
_TAKEN = {
    "blank_lines": b"\n \n" + json.dumps(_GOOD).encode() + b"\r\n",
    "byte_order": b"\xef\xbb\xbf" + json.dumps(_GOOD).encode(),
    "escapes": b'{"query": "\\u0000 \\ud83d\\ude00", "synthetic_reasoning": "r", '
    b'"synthetic_answer": "a"}',
    "empty_field": json.dumps(_GOOD | {"query": " \n"}).encode(),
    "null_field": json.dumps(_GOOD | {"query": None}).encode(),
    "null_beside": json.dumps(_said(tool_calls=[], name=None) | {"tools": None}).encode(),
    "parts_without_text": json.dumps(_said(content=[{"type": "text", "text": " "}])).encode(),
    "no_contents": json.dumps(_said(content=[])).encode(),
    "null_content": json.dumps(_said(content=None)).encode(),
}


def record_bad_rows(recorder: Recorder, vocabulary: Path, folder: Path) -> None:
    """Records what is said of every bad row, in the middle of a file of good ones.

    Args:
        recorder: of this process.
        vocabulary: `o200k_base.tiktoken`.
        folder: an empty one.
    """
    read = _reader(vocabulary)
    path = folder / "rows.jsonl"
    good = json.dumps(_GOOD).encode()
    harmony = {name: json.dumps(row).encode() for name, row in _HARMONY.items()}
    openai = {name: json.dumps(row).encode() for name, row in _OPENAI.items()}
    for form, lines in (("harmony", _LINES | harmony), ("openai", openai)):
        for name, line in lines.items():
            path.write_bytes(b"\n".join([good, b"", line, good]))
            place = f"refused/{form}/{name}"
            record_refusal(recorder, place, partial(read, path, form), folder)
    for name, line in _TAKEN.items():
        path.write_bytes(line)
        record_refusal(recorder, f"taken/{name}", lambda: read(path, "harmony"), folder)
    path.write_bytes(good + b"\n" + json.dumps(_GOOD | {"query": "x" * 900}).encode())
    with replaced(rows_module, "MAX_ROW_BYTES", 500), replaced(rows_module, "_BLOCK_BYTES", 64):
        record_refusal(recorder, "refused/too_large", lambda: read(path, "harmony"), folder)


def record_bad_files(recorder: Recorder, vocabulary: Path, folder: Path) -> None:
    """Records what is said of files that are none of rows, and of bad rows in Parquet.

    Args:
        recorder: of this process.
        vocabulary: `o200k_base.tiktoken`.
        folder: an empty one.
    """
    read = _reader(vocabulary)
    good = json.dumps(_GOOD).encode()
    contents = {
        "gzip.jsonl.gz": gzip.compress(good),
        "zstd.jsonl": b"\x28\xb5\x2f\xfd00",
        "zip.jsonl": b"PK\x03\x04",
        "empty.parquet": b"",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.jsonl").mkdir()
    (folder / "link.jsonl").symlink_to("nowhere.jsonl")
    (folder / "below.jsonl").write_bytes(good)
    names = (*contents, "missing.jsonl", "folder.jsonl", "link.jsonl", "below.jsonl/a.jsonl")
    for name in names:
        call = partial(read, folder / name, "harmony")
        record_refusal(recorder, f"refused/file/{name}", call, folder)
    record_refusal(recorder, "refused/file/nul", lambda: read(Path("a\0b"), "harmony"), folder)
    _record_parquet(recorder, read, folder)


def _record_parquet(
    recorder: Recorder, read: Callable[[Path, str], list[int]], folder: Path
) -> None:
    path = folder / "rows.parquet"
    raw = pyarrow.array([b"a", b"b", b"\xff", b"d"])
    columns: dict[str, dict[str, Any]] = {
        "number": {"query": [1, 2, 3, 4]},
        "bytes": {"query": raw},
        "bad_utf8": {"query": raw.view(pyarrow.string())},
        "time": {"query": pyarrow.array([None, None, 2**62, None], pyarrow.timestamp("ms"))},
        "id_of_no_type": {"synth_id": [1.5, 2.0, 3.0, 4.0]},
    }
    tables = {
        name: pyarrow.table({key: [value] * 4 for key, value in _GOOD.items()} | changed)
        for name, changed in columns.items()
    }
    chat = {"messages": [[_USER, _SAID]] * 4}
    tables["beside"] = pyarrow.table(chat | {"source": [None, None, None, "web"]})
    tables["no_column"] = pyarrow.table({"text": ["x"], "query": ["q"]})
    tables["no_columns"] = pyarrow.table({})
    tables["column_twice"] = pyarrow.Table.from_arrays([raw, raw], names=["query", "query"])
    for name, table in tables.items():
        pyarrow.parquet.write_table(table, path)
        place = f"refused/parquet/{name}"
        record_refusal(recorder, place, lambda: read(path, "harmony"), folder)
    large = pyarrow.table(
        {key: ["x" * 400, "y" * n] for key, n in zip(_GOOD, (3, 3, 900), strict=True)}
    )
    plain: dict[str, Any] = {
        "compression": "none",
        "use_dictionary": False,
        "write_statistics": False,
    }
    for name, limit in (("group_too_large", 300), ("row_too_large", 1000)):
        pyarrow.parquet.write_table(large, path, **plain)
        with replaced(rows_module, "MAX_ROW_BYTES", limit):
            place = f"refused/parquet/{name}"
            record_refusal(recorder, place, lambda: read(path, "harmony"), folder)

    pyarrow.parquet.write_table(large, path, **plain)
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56  # the header of the first page
    path.write_bytes(content)
    record_refusal(recorder, "refused/parquet/broken", lambda: read(path, "harmony"), folder)


def _reader(vocabulary: Path) -> Callable[[Path, str], list[int]]:
    """A function that reads and encodes a file as a build does, and returns its ids."""
    encoders = {
        form: BlockEncoder(vocabulary, "short", "0", False, ChatOptions(form))
        for form in CHAT_FORMATS
    }

    def read(path: Path, form: str) -> list[int]:
        blocks = read_blocks(open_input(path), Position())
        encoded = [encoders[form].encode(block) for block in blocks]
        return [int(token) for block in encoded for token in block.documents.tokens]

    return read
