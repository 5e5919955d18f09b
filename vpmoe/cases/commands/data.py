"""`vpmoe data` and `vpmoe tokenizer`: what they build, show, verify and refuse."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from validation.running.recorder import Recorder
from vpmoe.cases.commands.session import Session, session

_ROWS: tuple[Mapping[str, Any], ...] = (
    {
        "synth_id": "one",
        "query": "What is 29 plus 83?",
        "synthetic_reasoning": "Add 29 and 83: 112.",
        "synthetic_answer": "It is 112.",
    },
    {"query": "Empty?", "synthetic_reasoning": " ", "synthetic_answer": "Skipped."},
    {
        "synth_id": "two",
        "query": "Größe? <|end|>",
        "synthetic_reasoning": "Ein Wort,\nzwei Zeilen.",
        "synthetic_answer": "Groß. 大きい 🙂",
    },
    {
        "synth_id": "three",
        "query": "And now?",
        "synthetic_reasoning": "Nothing more.",
        "synthetic_answer": "The end.",
    },
    {
        "messages": [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "channel": "analysis", "content": "A greeting."},
            {"role": "assistant", "channel": "final", "content": "Hello to you."},
        ],
        "metadata": {"synth_id": "four"},
    },
)
_CHAT = {
    "messages": [
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "thinking": "It is known.", "content": "Warm."},
    ],
    "tools": [{"type": "function", "function": {"name": "thermometer"}}],
    "votes": 3,
}
# Seconds that the clock of a build moves on whenever it is asked for.
_TICK = 11.0


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Runs every command with good input and with each kind of bad input.

    Args:
        recorder: of this process.
        settings: none.
    """
    del settings
    with session(recorder, "tokenizer") as commands:
        _tokenizer(commands)
    with session(recorder, "data") as commands:
        _write_inputs(commands.folder)
        commands.vpmoe("no command", "data")
        commands.vpmoe("unknown command", "data", "show")
        _build(commands)
        _build_refusals(commands)
        _render(commands)
        _inspect(commands)
        _verify(commands)
        _progress(commands)
        _to_a_closed_pipe(commands)


def _tokenizer(commands: Session) -> None:
    vpmoe, folder = commands.vpmoe, commands.folder
    installed = "data/tokenizer/o200k_base.tiktoken"
    vpmoe("verify without a file", "tokenizer", "verify")
    vpmoe("install", "tokenizer", "install", watch="data")
    vpmoe("install again", "tokenizer", "install", watch="data")
    vpmoe("install a copy", "tokenizer", "install", "--path", "copy", "--source", installed)
    vpmoe("verify", "tokenizer", "verify")
    vpmoe("verify a copy", "tokenizer", "verify", "--path", "copy")
    (folder / "other").write_bytes(b"aGVsbG8= 0\n")
    (folder / "packed").write_bytes(b"\x1f\x8bnothing")
    refused = (
        ("another file", "verify", "--path", "other"),
        ("another file there", "install", "--path", "other"),
        ("another source", "install", "--path", "new", "--source", "other"),
        ("a damaged source", "install", "--path", "new", "--source", "packed"),
        ("no source", "install", "--path", "new", "--source", "none"),
        ("no place", "install", "--path", "copy/new", "--source", installed),
    )
    for name, *words in refused:
        vpmoe(name, "tokenizer", *words, watch=".")

    text = "hello <|end|> größer 🙂"
    vpmoe("encode", "tokenizer", "encode", text)
    vpmoe("encode control tokens", "tokenizer", "encode", "--special", text)
    vpmoe("encode to JSON", "tokenizer", "encode", "--json", "--special", text)
    vpmoe("encode with a copy", "tokenizer", "encode", "--path", "copy", "")
    vpmoe("encode standard input", "tokenizer", "encode", stdin=text.encode())
    vpmoe("encode no UTF-8", "tokenizer", "encode", stdin=b"a\xffb")
    vpmoe("decode", "tokenizer", "decode", "24912", "2375", "200007")
    vpmoe("decode part of a character", "tokenizer", "decode", "9552")
    vpmoe("decode standard input", "tokenizer", "decode", stdin=b"[24912, 2375]\n")
    vpmoe("decode with a copy", "tokenizer", "decode", "--path", "copy", "24912")
    vpmoe("decode words", "tokenizer", "decode", "24912", "two")
    vpmoe("decode words of standard input", "tokenizer", "decode", stdin=b"24912 two")
    vpmoe("decode an id outside", "tokenizer", "decode", "5", "201088")
    with _full_disk():
        vpmoe("install on a full disk", "tokenizer", "install", "--path", "full", watch=".")
    with _stopped():
        vpmoe("interrupted", "tokenizer", "encode", "hello")
    commands.module("as a module", "vpmoe.cli", ["tokenizer", "decode", "24912"])
    vpmoe("no command", "tokenizer")
    vpmoe("unknown option", "tokenizer", "encode", "--fast", "x")


@contextlib.contextmanager
def _full_disk() -> Iterator[None]:
    """A disk that has no room for what a file was given."""
    from vpmoe.runtime.patches import replaced

    def fsync(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with replaced(os, "fsync", fsync):
        yield


@contextlib.contextmanager
def _stopped() -> Iterator[None]:
    """Ctrl-C while the tokenizer is loaded."""
    from vpmoe.runtime.patches import replaced
    from vpmoe.tokenizer import cli

    def load(path: Path | None) -> Any:
        raise KeyboardInterrupt

    with replaced(cli, "_load", load):
        yield


def _write_inputs(folder: Path) -> None:
    inputs: Mapping[str, Sequence[Any]] = {
        "rows.jsonl": [*_ROWS],
        "chat.jsonl": [_CHAT],
        "twice.jsonl": [_ROWS[0], _ROWS[2], _ROWS[0]],
        "empty.jsonl": [_ROWS[1]],
        "numbers.jsonl": [_ROWS[0], {**_ROWS[2], "query": 7}],
        "lacking.jsonl": [{"query": "x"}],
        "list.jsonl": [_ROWS[0], [1]],
    }
    for name, rows in inputs.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "broken.jsonl").write_text('{"query": "x"\n')
    (folder / "latin.jsonl").write_bytes('{"query": "ä"}\n'.encode("latin-1"))
    (folder / "packed.jsonl").write_bytes(b"\x1f\x8b\x08")
    (folder / "rows.parquet").write_bytes(b"PAR1 and no more")
    (folder / "folder").mkdir()


def _build(commands: Session) -> None:
    vpmoe = commands.vpmoe
    build = ("data", "build", "--input", "rows.jsonl", "--output")
    vpmoe("build", *build, "built", watch="built")
    vpmoe("build again", *build, "built", watch="built")
    vpmoe("build with other settings", *build, "built", "--supervise-eod", watch="built")
    sharded = ("--valid-fraction", "0.5", "--rows-per-shard", "1", "--profile", "synth_kd_v1")
    vpmoe("build shards", *build, "shards", *sharded, watch="shards")
    vpmoe("build with end of text", *build, "eod", "--supervise-eod", watch="eod")
    vocabulary = ("--vocabulary", "data/tokenizer/o200k_base.tiktoken")
    vpmoe(
        "build two inputs",
        *build[:4],
        "chat.jsonl",
        "--output",
        "two",
        *_OPENAI,
        *vocabulary,
        watch="two",
    )
    twice = ("data", "build", "--input", "twice.jsonl", "--output")
    vpmoe("build duplicates", *twice, "twice")
    vpmoe("build without duplicates", *twice, "once", "--duplicates", "skip", watch="once")
    vpmoe(
        "build what is shipped",
        "data",
        "build",
        "--input",
        "data/sample/conversations.jsonl",
        "--output",
        "shipped",
        watch="shipped",
    )


_OPENAI = ("--chat-format", "openai", "--ignore-columns", "votes")


def _build_refusals(commands: Session) -> None:
    for name in ("empty", "numbers", "lacking", "list", "broken", "latin", "packed", "none"):
        place = ("--input", f"{name}.jsonl", "--output", f"from-{name}")
        commands.vpmoe(f"build {name}", "data", "build", *place)
    rows: tuple[str, ...] = ("data", "build", "--input", "rows.jsonl")
    other: Mapping[str, tuple[str, ...]] = {
        "a folder": ("data", "build", "--input", "folder", "--output", "new"),
        "a damaged Parquet file": ("data", "build", "--input", "rows.parquet", "--output", "new"),
        "a chat as Harmony": ("data", "build", "--input", "chat.jsonl", "--output", "chat"),
        "a chat with a column": (*rows, "chat.jsonl", *_OPENAI[:2], "--output", "column"),
        "no worker": (*rows, "--output", "new", "--workers", "0"),
        "half a worker": (*rows, "--output", "new", "--workers", "0.5"),
        "no fraction": (*rows, "--output", "new", "--valid-fraction", "some"),
        "too large a fraction": (*rows, "--output", "new", "--valid-fraction", "1.5"),
        "empty shards": (*rows, "--output", "new", "--rows-per-shard", "0"),
        "an unknown profile": (*rows, "--output", "new", "--profile", "long"),
        "unknown duplicates": (*rows, "--output", "new", "--duplicates", "keep"),
        "an unknown chat format": (*rows, "--output", "new", "--chat-format", "chat"),
        "another vocabulary": (*rows, "--output", "new", "--vocabulary", "rows.jsonl"),
        "a file as output": (*rows, "--output", "rows.jsonl"),
        "no input": ("data", "build", "--output", "new"),
        "no output": rows,
    }
    for name, words in other.items():
        commands.vpmoe(f"build {name}", *words, watch="new")
    with _writing_fails():
        commands.vpmoe("build on a broken disk", *rows, "--output", "broken", watch="broken")
        commands.vpmoe("build without a word", *rows, "--output", "nameless", watch="nameless")
    with _interrupted():
        commands.vpmoe("build interrupted", *rows, "--output", "broken")
    commands.vpmoe("build goes on", *rows, "--output", "broken", watch="broken")


@contextlib.contextmanager
def _writing_fails() -> Iterator[None]:
    """A disk that cannot write manifests: the first error names a file, the second nothing."""
    from vpmoe.data import build
    from vpmoe.runtime.patches import replaced

    errors = iter([PermissionError(13, "Permission denied", "manifest.json"), OSError("no reason")])

    def write_atomically(path: Path, content: bytes) -> None:
        del path, content
        raise next(errors)

    with replaced(build, "write_atomically", write_atomically):
        yield


@contextlib.contextmanager
def _interrupted() -> Iterator[None]:
    """Ctrl-C in the middle of a build."""
    from vpmoe.data import build
    from vpmoe.runtime.patches import replaced

    def read_blocks(*args: Any) -> Any:
        raise KeyboardInterrupt

    with replaced(build, "read_blocks", read_blocks):
        yield


def _render(commands: Session) -> None:
    render = ("data", "render", "--input")
    for row in range(6):
        commands.vpmoe(f"render row {row}", *render, "rows.jsonl", "--row", str(row))
    commands.vpmoe("render to JSON", *render, "rows.jsonl", "--json")
    commands.vpmoe(
        "render with a profile", *render, "rows.jsonl", "--profile", "synth_kd_v1", "--row", "2"
    )
    commands.vpmoe("render a chat", *render, "chat.jsonl", *_OPENAI)
    commands.vpmoe("render a chat as Harmony", *render, "chat.jsonl")
    commands.vpmoe("render no file", *render, "none.jsonl")
    vocabulary = ("--vocabulary", "data/tokenizer/o200k_base.tiktoken")
    commands.vpmoe("render with a vocabulary", *render, "rows.jsonl", *vocabulary)
    with _colours():
        commands.vpmoe("render in colours", *render, "rows.jsonl", "--row", "2")


@contextlib.contextmanager
def _colours() -> Iterator[None]:
    """A terminal of eight colours."""
    with patch.dict(os.environ, FORCE_COLOR="1", TERM="xterm"):
        del os.environ["NO_COLOR"]
        yield


def _inspect(commands: Session) -> None:
    inspect = ("data", "inspect")
    commands.vpmoe("inspect", *inspect, "built")
    commands.vpmoe(
        "inspect the next shard", *inspect, "shards", "--split", "valid", "--document", "2"
    )
    vocabulary = ("--vocabulary", "data/tokenizer/o200k_base.tiktoken")
    commands.vpmoe("inspect with a vocabulary", *inspect, "built", *vocabulary)
    commands.vpmoe("inspect to JSON", *inspect, "built", "--json")
    commands.vpmoe("inspect the valid split", *inspect, "shards", "--split", "valid", "--json")
    commands.vpmoe("inspect beyond the last", *inspect, "built", "--document", "4")
    commands.vpmoe("inspect before the first", *inspect, "built", "--document", "-1")
    commands.vpmoe("inspect an empty split", *inspect, "built", "--split", "valid")
    commands.vpmoe("inspect an unknown split", *inspect, "built", "--split", "test")
    commands.vpmoe("inspect no dataset", *inspect, "folder")


def _verify(commands: Session) -> None:
    verify = ("data", "verify")
    for dataset in ("built", "shards", "eod"):
        commands.vpmoe(f"verify {dataset}", *verify, dataset)
    commands.vpmoe("verify no dataset", *verify, "folder")
    for name, damage in _DAMAGES.items():
        place = commands.folder / f"damaged-{name}".replace(" ", "-")
        _copy(commands.folder / "built", place)
        damage(place)
        commands.vpmoe(f"verify {name}", *verify, place.name)
        commands.vpmoe(f"inspect {name}", "data", "inspect", place.name)


def _copy(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _foreign_id(folder: Path) -> None:
    path = folder / "train/shard_00_tokens.bin"
    content = bytearray(path.read_bytes())
    content[40:44] = (201_088).to_bytes(4, "little")
    path.write_bytes(content)


_DAMAGES = {
    "a foreign id": _foreign_id,
    "a changed token": lambda folder: _flip(folder / "train/shard_00_tokens.bin", 400),
    "a changed mask": lambda folder: _flip(folder / "train/shard_00_lossmask.bin", 3),
    "a changed span": lambda folder: _flip(folder / "train/shard_00_span.bin", 60),
    "a changed index": lambda folder: _flip(folder / "train/shard_00_tokens.idx", 40),
    "a changed record": lambda folder: _flip(folder / "train/shard_00_documents.bin", 60),
    "a short file": lambda folder: os.truncate(folder / "train/shard_00_span.bin", 30),
    "a short index": lambda folder: os.truncate(folder / "train/shard_00_span.idx", 30),
    "no index": lambda folder: (folder / "train/shard_00_span.idx").unlink(),
    "another file": lambda folder: (folder / "train/more.bin").touch(),
    "a changed manifest": lambda folder: _flip(folder / "manifest.json", 30),
    "a manifest of no JSON": lambda folder: (folder / "manifest.json").write_text("{"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
}


def _progress(commands: Session) -> None:
    """What a build shows of itself, by a clock of the case's own: on a terminal, and in a log."""
    from vpmoe.data import progress
    from vpmoe.runtime.patches import replaced

    line = json.dumps({**_ROWS[0], "synth_id": "{}", "query": "x" * 3000})
    rows = "\n".join(line.replace("{}", str(number)) for number in range(400))
    (commands.folder / "long.jsonl").write_text(rows)
    for name, on_terminal in (("in a log", False), ("on a terminal", True)):
        clock = _Clock()
        with (
            replaced(progress, "time", SimpleNamespace(monotonic=clock)),
            replaced(progress, "sys", _Terminal() if on_terminal else sys),
        ):
            words = ("--input", "long.jsonl", "rows.jsonl", "--output", name.replace(" ", "-"))
            commands.vpmoe(f"build {name}", "data", "build", *words)
    commands.call("clock", lambda: [progress._clock(second) for second in (0.4, 59.6, 3725.0)])


class _Clock:
    """A clock that moves on when it is asked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += _TICK
        return self.now


class _Terminal:
    """`sys`, whose stderr is a terminal."""

    @property
    def stderr(self) -> Any:
        """The stream that is in place now."""
        stream = sys.stderr
        stream.isatty = lambda: True  # type: ignore[method-assign]
        return stream


def _to_a_closed_pipe(commands: Session) -> None:
    """Commands whose reader has seen enough."""
    for name, words in (
        ("inspect", ["data", "inspect", "built"]),
        ("verify", ["data", "verify", "built"]),
        ("tokenizer encode", ["tokenizer", "encode", "hello"]),
    ):
        commands.run(f"{name} to a closed pipe", _closed, words)
        commands.run(f"{name} line by line", _closed_line_by_line, words)


def _closed_line_by_line(words: list[str]) -> int:
    return _closed(words, 1)


def _closed(words: list[str], buffering: int = -1) -> int:
    from vpmoe.cli import main

    read, write = os.pipe()
    os.close(read)
    with open(write, "w", buffering) as stream, contextlib.redirect_stdout(stream):  # noqa: PTH123
        return main(words)
