"""Every command's `--help` prints, on a narrow and on a wide terminal."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest
import torch

from validation.cli.program import build_parser as golden_parser
from vpmoe.arguments import escape_percentages
from vpmoe.cli import _parser as vpmoe_parser
from vpmoe.cli import main as vpmoe

WIDTHS = ("60", "200")


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of all its sub-commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


COMMANDS = {p.prog: p for root in (vpmoe_parser(), golden_parser()[0]) for p in parsers(root)}


def test_the_sweep_has_every_command() -> None:
    expected = {"vpmoe", "vpmoe data build", "vpmoe tokenizer encode", "golden", "golden check"}
    assert expected <= set(COMMANDS)
    assert len(COMMANDS) >= 30


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("command", COMMANDS)
def test_help_prints(command: str, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    parser = COMMANDS[command]
    text = parser.format_help()
    assert text.startswith(f"usage: {command}")
    for action in parser._actions:
        if action.help != argparse.SUPPRESS and action.option_strings:
            assert action.option_strings[-1] in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU lane is for machines without CUDA")
@pytest.mark.parametrize("columns", WIDTHS)
def test_help_of_pretrain_lists_both_sides_flags(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as stop:
        vpmoe(["pretrain", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: vpmoe pretrain")
    for word in ("--config FILE", "--num-layers", "--synth-kd-data", "--rotary-percent", "100%"):
        assert word in shown


@pytest.mark.parametrize(
    ("help_text", "shown"),
    [
        ("half of 100%", "half of 100%"),
        ("(10%)", "(10%)"),
        ("use 90% of it", "use 90% of it"),
        ("a 5% share and 10%% more", "a 5% share and 10% more"),
        ("%(prog)s takes %(default)s, 50% of 14", "vpmoe takes 7, 50% of 14"),
        (None, ""),
        (argparse.SUPPRESS, ""),
    ],
)
def test_a_percentage_in_a_help_text_is_printed(help_text: str | None, shown: str) -> None:
    parser = argparse.ArgumentParser(prog="vpmoe")
    parser.add_argument("--share", default=7, help=help_text)
    escape_percentages(parser)
    escape_percentages(parser)  # what is escaped stays so
    assert shown in " ".join(parser.format_help().split())
