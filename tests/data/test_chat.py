"""Rows with messages: nothing of them is lost, and OpenAI's chat form is converted when asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from vpmoe.cli import main
from vpmoe.data.build import build_dataset
from vpmoe.data.dataset_files import open_shards, read_manifest, verify_dataset
from vpmoe.data.errors import DataError
from vpmoe.tokenizer import O200kHarmonyTokenizer

WriteRows = Callable[..., Path]
EncodeFile = Callable[..., int]
_USER = {"role": "user", "content": "Rain?"}
_FINAL = {"role": "assistant", "channel": "final", "content": "No."}
_GOOD = {"messages": [_USER, _FINAL]}
_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"at": 1}'}}
_TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it."}}
_CALLED = (
    "<|start|>assistant to=functions.weather<|channel|>commentary <|constrain|>json<|message|>"
    '{"at": 1}<|call|>'
)
_ANSWERED = "<|start|>functions.weather to=assistant<|channel|>commentary<|message|>dry<|end|>"


def _document(
    folder: Path, tokenizer: O200kHarmonyTokenizer
) -> tuple[str, dict[int, str], list[int]]:
    """The only document: its text, the text of every span, and its mask."""
    list(verify_dataset(folder))
    (shard,) = open_shards(folder, read_manifest(folder))
    assert shard.rows == 1
    tokens, spans = shard.arrays["tokens"], shard.arrays["span"]
    labels = np.concatenate([[0], spans[:-1]])
    texts = {n: tokenizer.detokenize(tokens[labels == n].tolist()) for n in (0, 1, 2)}
    return tokenizer.detokenize(tokens.tolist()), texts, shard.arrays["lossmask"].tolist()


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"messages": [_USER, _FINAL | {"thinking": "hm"}]}, "message 1: unknown key `thinking`"),
        ({"messages": [_USER, _FINAL | {"tool_calls": [_CALL]}]}, "unknown key `tool_calls`"),
        ({"messages": [_USER, _FINAL | {"reasoning": "hm"}]}, "--chat-format openai"),
        ({"messages": [_USER | {"image": "x"}, _FINAL]}, "message 0: unknown key `image`"),
        ({"messages": [_USER, _FINAL | {"weight": 0}]}, "unknown key `weight`"),
        (
            {"messages": [_USER | {"content": [{"type": "text", "text": "x", "y": 1}]}, _FINAL]},
            "message 0: unknown key `y`",
        ),
        (_GOOD | {"tools": [_TOOL]}, "unknown key `tools`.*--chat-format openai"),
        (_GOOD | {"system": "Be kind."}, "unknown key `system`.*--ignore-columns"),
        (_GOOD | {"query": "q"}, "unknown key `query`"),
        ({"messages": [_USER, _FINAL | {"channel": "commentary"}]}, "channel 'commentary'"),
        ({"messages": [_USER, {"role": "assistant", "content": "No."}]}, "channel None"),
        ({"messages": [_USER, _FINAL | {"channel": ["final"]}]}, "channel"),
        ({"messages": [_USER, {"role": "assistant", "channel": "final"}]}, "`content`"),
        ({"messages": [[_USER], _FINAL]}, "message 0 is no object"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "messages_json"])
def test_what_would_be_lost_is_refused_with_file_and_line(
    tmp_path: Path,
    write_rows: WriteRows,
    encode_file: EncodeFile,
    row: dict[str, Any],
    match: str,
    kind: str,
) -> None:
    rows = [_GOOD, row]
    if kind == "messages_json":
        rows = [
            {key: item for key, item in row.items() if key != "messages"}
            | {"messages_json": json.dumps({"messages": row["messages"]})}
            for row in rows
        ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*{match}"):
        encode_file(path)


def test_two_conversations_in_a_row_are_refused(
    tmp_path: Path, write_rows: WriteRows, encode_file: EncodeFile
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [_GOOD, _GOOD | {"messages_json": "[]"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: both `messages` and `messages_json`"):
        encode_file(path)


def test_what_would_be_lost_in_parquet_is_refused_with_the_row(
    tmp_path: Path, vocabulary: Path, encode_file: EncodeFile
) -> None:
    """A struct has every key in every row: None is no loss."""
    path = tmp_path / "rows.parquet"
    final = _FINAL | {"thinking": None}
    rows = [{"messages": [_USER, final], "source": None}] * 3
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert encode_file(path) == 3
    for bad, match in (
        ({"messages": [_USER, final | {"thinking": "hm"}], "source": None}, "`thinking`"),
        ({"messages": [_USER, final], "source": "web"}, "`source`"),
    ):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*rows, bad]), path)
        with pytest.raises(DataError, match=rf"rows\.parquet:4: .*{match}"):
            encode_file(path)
    result = build_dataset(
        [path], tmp_path / "out", ignore_columns=["source"], vocabulary=vocabulary
    )
    assert result.manifest["splits"]["train"]["rows"] == 4


@pytest.mark.parametrize("content", ["", " \n", None, [], [{"type": "text", "text": ""}]])
def test_an_answer_without_text_is_an_empty_field(
    tmp_path: Path, write_rows: WriteRows, vocabulary: Path, content: Any
) -> None:
    """Nothing but wrappers would be trained on."""
    row = {"messages": [_USER, _FINAL | {"content": content}]}
    path = write_rows(tmp_path / "rows.jsonl", [row, _GOOD])
    for form in ("harmony", "openai"):
        result = build_dataset([path], tmp_path / form, chat_format=form, vocabulary=vocabulary)
        assert result.manifest["skipped"]["empty"] == 1
        assert result.manifest["splits"]["train"]["rows"] == 1


def test_thinking_becomes_analysis(
    tmp_path: Path, write_rows: WriteRows, vocabulary: Path, tokenizer: O200kHarmonyTokenizer
) -> None:
    documents = []
    for key in ("thinking", "reasoning_content", "reasoning"):
        same = {"reasoning": "hm", key: "hm"}
        answer = {"role": "assistant", "content": "No.", "refusal": None} | same
        path = write_rows(tmp_path / f"{key}.jsonl", [{"messages": [_USER, answer]}])
        words = ["data", "build", "--input", str(path), "--output", str(tmp_path / key)]
        assert main([*words, "--chat-format", "openai", "--vocabulary", str(vocabulary)]) == 0
        documents.append(_document(tmp_path / key, tokenizer))
    text, spans, mask = documents[0]
    assert documents == [documents[0]] * 3
    analysis = "<|start|>assistant<|channel|>analysis<|message|>hm<|end|>"
    final = "<|start|>assistant<|channel|>final<|message|>No.<|return|>"
    assert text == f"<|start|>user<|message|>Rain?<|end|>{analysis}{final}<|endoftext|>"
    assert (spans[1], spans[2]) == (analysis, final)
    assert sum(mask) == len(tokenizer.encode(analysis + final, allowed_special="all"))
    manifest = read_manifest(tmp_path / "thinking")
    assert manifest["config"]["chat_format"] == "openai"


@pytest.mark.parametrize(
    "call",
    [
        _CALL,
        {"id": "c1", "name": "weather", "arguments": {"at": 1}},
        _CALL | {"index": 0, "function": {"name": "functions.weather", "arguments": {"at": 1}}},
    ],
)
def test_calls_become_commentary_and_their_results_tool_messages(
    tmp_path: Path,
    write_rows: WriteRows,
    vocabulary: Path,
    tokenizer: O200kHarmonyTokenizer,
    call: dict[str, Any],
) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        _USER,
        {"role": "assistant", "thinking": "ask", "content": "I ask.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "dry"},
        {"role": "assistant", "content": "No."},
    ]
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": messages, "tools": [_TOOL]}])
    build_dataset([path], tmp_path / "out", chat_format="openai", vocabulary=vocabulary)
    text, spans, _ = _document(tmp_path / "out", tokenizer)
    system = "<|start|>system<|message|>Be kind.<|end|>"
    developer = (
        "<|start|>developer<|message|># Tools\n\n## functions\n\nnamespace functions {\n\n"
        "// Tells it.\ntype weather = () => any;\n\n} // namespace functions<|end|>"
    )
    before = "<|start|>assistant<|channel|>commentary<|message|>I ask.<|end|>"
    final = "<|start|>assistant<|channel|>final<|message|>No.<|return|>"
    analysis = "<|start|>assistant<|channel|>analysis<|message|>ask<|end|>"
    user = "<|start|>user<|message|>Rain?<|end|>"
    assert text == "".join(
        [system, developer, user, analysis, before, _CALLED, _ANSWERED, final, "<|endoftext|>"]
    )
    assert spans[1] == analysis
    assert spans[2] == before + _CALLED + final


def test_older_calls_and_tools_beside_instructions(
    tmp_path: Path, write_rows: WriteRows, vocabulary: Path, tokenizer: O200kHarmonyTokenizer
) -> None:
    messages = [
        {"role": "developer", "content": "Ask first."},
        _USER,
        {"role": "assistant", "content": None, "function_call": _CALL["function"]},
        {"role": "function", "name": "weather", "content": "dry"},
        {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
    ]
    path = write_rows(
        tmp_path / "rows.jsonl", [{"messages": messages, "tools": [_TOOL["function"]]}]
    )
    build_dataset([path], tmp_path / "out", chat_format="openai", vocabulary=vocabulary)
    text, spans, _ = _document(tmp_path / "out", tokenizer)
    assert text.startswith("<|start|>developer<|message|># Instructions\n\nAsk first.\n\n# Tools\n")
    assert _CALLED + _ANSWERED in text
    assert spans[1] == ""


@pytest.mark.parametrize(
    ("message", "more", "match"),
    [
        ({"thinking": "a", "reasoning": "b"}, {}, "both `thinking` and `reasoning`"),
        ({"thinking": ["a"]}, {}, "`thinking` must be a text"),
        ({"channel": ["final"]}, {}, r"channel \['final'\]"),
        ({"audio": "x"}, {}, "message 1: unknown key `audio`"),
        ({"tool_calls": {"a": 1}}, {}, "`tool_calls` must be a list"),
        ({"tool_calls": ["x"]}, {}, "call must be an object"),
        ({"tool_calls": [{"type": "custom", "custom": {}}]}, {}, "type 'custom'"),
        ({"tool_calls": [_CALL | {"extra": 1}]}, {}, "unknown key `extra`"),
        ({"tool_calls": [{"function": {"name": "f"}}]}, {}, "`arguments` of a call"),
        ({"tool_calls": [{"function": {"arguments": "{}"}}]}, {}, "`name` must be a text"),
        ({"tool_calls": [_CALL], "function_call": {"name": "f"}}, {}, "both `tool_calls`"),
        ({"role": "tool", "tool_call_id": "c9"}, {}, "no call before it has the id 'c9'"),
        ({"role": "tool"}, {}, "needs the `tool_call_id`"),
        ({"role": "robot"}, {}, "unknown role 'robot'"),
        ({"content": [{"type": "image_url", "image_url": {}}]}, {}, "unknown content"),
        ({}, {"tools": {"a": 1}}, "`tools` must be a list"),
        ({}, {"tools": [_TOOL, {"type": "web_search"}]}, "tool 1: .*'web_search'"),
        ({}, {"tools": [{"function": {"description": "d"}}]}, "tool 0: `name`"),
        ({}, {"functions": [1]}, "unknown key `functions`"),
    ],
)
def test_what_has_no_place_in_harmony_is_refused(
    tmp_path: Path,
    write_rows: WriteRows,
    encode_file: EncodeFile,
    message: dict[str, Any],
    more: dict[str, Any],
    match: str,
) -> None:
    bad = {"messages": [_USER, {"role": "assistant", "content": "x"} | message, _FINAL]} | more
    path = write_rows(tmp_path / "rows.jsonl", [_GOOD, bad])
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*{match}"):
        encode_file(path, "openai")


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "developer_content", "tools": {"a": {"name": "a", "tools": []}}}],
        [{"type": "text", "text": "x"}, {"type": "image"}],
        [{"type": "text", "text": 3}],
        [{"type": "text", "text": "x", "image": "y"}],
        ["x"],
        3,
    ],
)
def test_tools_that_would_hide_what_the_developer_says_are_refused(
    tmp_path: Path, write_rows: WriteRows, encode_file: EncodeFile, content: Any
) -> None:
    row = {"messages": [{"role": "developer", "content": content}, _USER, _FINAL]}
    path = write_rows(tmp_path / "rows.jsonl", [row | {"tools": [_TOOL]}])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the developer message .*`tools`: "):
        encode_file(path, "openai")


def test_harmony_rows_are_the_same_in_either_format(
    tmp_path: Path, write_rows: WriteRows, vocabulary: Path, tokenizer: O200kHarmonyTokenizer
) -> None:
    analysis = {"role": "assistant", "channel": "analysis", "content": "hm"}
    row = {"messages": [{"role": "system", "content": "s"}, _USER, analysis, _FINAL]}
    path = write_rows(tmp_path / "rows.jsonl", [row])
    for form in ("harmony", "openai"):
        build_dataset([path], tmp_path / form, chat_format=form, vocabulary=vocabulary)
    documents = [_document(tmp_path / form, tokenizer) for form in ("harmony", "openai")]
    assert documents[0] == documents[1]
    assert "chat_format" not in read_manifest(tmp_path / "harmony")["config"]


def test_render_takes_the_same_options(
    tmp_path: Path,
    write_rows: WriteRows,
    vocabulary: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = {"role": "assistant", "thinking": "hm", "content": "No."}
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": [_USER, answer], "source": "web"}])
    words = ["data", "render", "--input", str(path), "--vocabulary", str(vocabulary)]
    assert main([*words, "--chat-format", "openai"]) == 2
    assert "rows.jsonl:1: unknown key `source`" in capsys.readouterr().err
    assert main([*words, "--chat-format", "openai", "--ignore-columns", "source"]) == 0
    assert "<|channel|>analysis<|message|>hm<|end|>" in capsys.readouterr().out
    with pytest.raises(DataError, match="--chat-format x: choose from harmony, openai"):
        build_dataset([path], tmp_path / "out", chat_format="x", vocabulary=vocabulary)
