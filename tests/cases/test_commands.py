"""The records of vpMoE's commands: the same on every machine, and one for every option."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from validation.running.recorder import Recorder
from vpmoe.cases.commands import data
from vpmoe.cases.commands.presets import BASE, preset
from vpmoe.cases.commands.session import Session, session
from vpmoe.cli import _parser

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="commands of the CPU lane")
REPOSITORY = Path(__file__).resolve().parents[2]


def recorded(recorder: Recorder) -> dict[tuple[str, str], Any]:
    events = recorder.trace("commands", {}).events
    found = {(event.key.module, event.key.tensor): event.value for event in events}
    assert len(found) == len(events), "two records of one name"
    return found


@pytest.fixture(scope="module")
def of_data() -> dict[tuple[str, str], Any]:
    recorder = Recorder()
    data.run(recorder, {})
    return recorded(recorder)


def test_another_machine_records_the_same(
    of_data: dict[tuple[str, str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("COLUMNS", "40"), ("FORCE_COLOR", "1"), ("COLORTERM", "truecolor")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    recorder = Recorder()
    data.run(recorder, {})
    assert recorded(recorder) == of_data
    assert os.environ["COLUMNS"] == "40"


def test_no_record_knows_the_machine(of_data: dict[tuple[str, str], Any]) -> None:
    text = json.dumps([[*place, value] for place, value in of_data.items()])
    for known in (str(REPOSITORY), str(Path.home()), "golden-commands-", sys.prefix):
        assert known not in text


def options_of(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[str]:
    """Every option of every sub-command, after the words that lead to it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from options_of(inner, (*words, name))
        elif action.dest != "help":
            yield " ".join((*words, *action.option_strings[:1]))


def test_every_option_of_data_and_tokenizer_is_used(
    of_data: dict[tuple[str, str], Any],
) -> None:
    commands = [value for (_, tensor), value in of_data.items() if tensor == "command"]
    used = {" ".join((*c[:2], word)) for c in commands for word in c[2:] if word.startswith("-")}
    wanted = {
        option
        for option in options_of(_parser())
        if option.startswith(("data ", "tokenizer ")) and " --" in option
    }
    assert wanted - used == set()


def test_what_comes_of_a_command_is_recorded(tmp_path: Path) -> None:
    def command(words: list[str]) -> int:
        print("read", sys.stdin.read(), Path.cwd(), REPOSITORY / "x")
        print("torch 2.9.1+cpu", file=sys.stderr)
        Path("kept").write_text("new")
        Path("gone").unlink()
        return len(words)

    recorder = Recorder()
    with session(recorder, "topic") as commands:
        Path("kept").write_text("old")
        Path("gone").touch()
        Path("same").touch()
        commands.run("name", command, ["one", "two"], stdin=b"words", watch=".")
    found = recorded(recorder)
    files = found.pop(("topic/name", "files"))
    assert found == {
        ("topic/name", "command"): ["one", "two"],
        ("topic/name", "exit"): 2,
        ("topic/name", "stdout"): ["read words <folder> <repository>/x"],
        ("topic/name", "stderr"): ["torch <version>"],
    }
    assert (files["gone"], files["kept"]["bytes"], "same" in files) == (None, 3, False)


def test_an_exception_is_an_exit_and_a_message(tmp_path: Path) -> None:
    def raising(words: list[str]) -> int:
        raise ValueError(f"no {words[0]}")

    def stopping(words: list[str]) -> int:
        print("vpmoe x: mine", file=sys.stderr)
        print("Megatron's", file=sys.stderr)
        print("Megatron's")
        raise SystemExit(3)

    recorder = Recorder()
    with session(recorder, "topic") as commands:
        commands.run("raising", raising, ["data"])
        commands.run("stopping", stopping, [], megatron_prints=True)
        commands.call("call", raising, ["data"])
    found = recorded(recorder)
    assert found["topic/raising", "exit"] == "ValueError"
    assert found["topic/raising", "stderr"] == ["no data"]
    assert found["topic/stopping", "exit"] == 3
    assert found["topic/stopping", "stderr"] == ["vpmoe x: mine"]
    assert ("topic/stopping", "stdout") not in found
    assert found["topic/call", "result"] == {"ValueError": ["no data"]}


def test_a_preset_is_edited(tmp_path: Path) -> None:
    import tomllib

    assert tomllib.loads(preset()) == BASE
    edited = tomllib.loads(preset({"model.num_layers": None, "attention.tpa_rank": [1, 2]}))
    assert "num_layers" not in edited["model"]
    assert edited["attention"]["tpa_rank"] == [1, 2]


def test_what_stands_in_the_place_of_streams_is_taken_back(tmp_path: Path) -> None:
    before = sys.stdin, sys.stdout, sys.stderr, Path.cwd()
    commands = Session(Recorder(), "topic", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        commands.run("name", _interrupted, [])
    assert (sys.stdin, sys.stdout, sys.stderr, Path.cwd()) == before


def _interrupted(words: list[str]) -> int:
    raise KeyboardInterrupt
