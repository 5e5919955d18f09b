"""Every flag is documented and used.

One that vpMoE adds to Megatron's is set by a preset or a case, or stands with its reason in the
reference; one of a command is named by a document that describes the command.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vpmoe.data.arguments import add_data_args
from vpmoe.optimizer.arguments import add_optimizer_args
from vpmoe.tokenizer.arguments import add_tokenizer_args


def own_flags() -> Iterator[str]:
    """The flags of all modules of flags."""
    from vpmoe.model.arguments import add_model_args

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--window-size")  # Megatron's, which the model's flags change
    for add in (add_data_args, add_model_args, add_optimizer_args, add_tokenizer_args):
        add(parser)
    for action in parser._actions:
        if action.option_strings != ["--window-size"]:
            yield action.option_strings[0]


@pytest.fixture(scope="module")
def texts(repository: Path) -> dict[str, str]:
    """All documents, and all presets, cases and tests, each as one text."""
    documents = [*(repository / "docs").glob("*.md"), repository / "README.md"]
    uses = [
        *(repository / "configs").glob("*.toml"),
        *(repository / "vpmoe" / "cases").rglob("*.py"),
        *(path for path in (repository / "tests").rglob("*.py") if path != Path(__file__)),
    ]
    return {
        name: "\n".join(path.read_text() for path in paths)
        for name, paths in (("documents", documents), ("uses", uses))
    }


@pytest.mark.parametrize("flag", list(own_flags()))
def test_a_flag_is_documented_and_used(texts: dict[str, str], flag: str) -> None:
    name = flag.removeprefix("--")
    assert re.search(rf"--(\[no-\])?{name}(?![\w-])", texts["documents"]), "no document has it"
    forms = rf"--(no-)?{name}(?![\w-])|\b{name.replace('-', '_')}\b"
    assert re.search(forms, texts["uses"]), "no preset, case or test uses it"


@pytest.mark.parametrize("flag", list(own_flags()))
def test_a_preset_or_a_case_sets_a_flag_or_the_reference_says_why_not(
    repository: Path, flag: str
) -> None:
    name = flag.removeprefix("--")
    field = rf"(?m)^{name.replace('-', '_')}\s*="
    presets = [path.read_text() for path in (repository / "configs").glob("*.toml")]
    cases = [path.read_text() for path in (repository / "vpmoe" / "cases").rglob("*.py")]
    is_set = any(re.search(field, text) for text in presets) or any(
        re.search(rf"\"--(no-)?{name}[\" =]", text) for text in cases
    )
    reference = (repository / "docs" / "reference" / "index.md").read_text()
    table = reference.partition("## Flags that no preset")[2]
    excused = re.search(rf"(?m)^\| [^|]*`{flag}`", table) is not None
    assert is_set != excused, "set by neither" if not is_set else "set, and in the reference's list"


def options_of_commands() -> Iterator[tuple[str, str]]:
    """(command in words, option) of `golden` and of `vpmoe`, without hidden options."""
    from validation.cli.program import build_parser
    from vpmoe.cli import _parser

    def walk(parser: argparse.ArgumentParser, words: str) -> Iterator[tuple[str, str]]:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, inner in action.choices.items():
                    yield from walk(inner, f"{words} {name}")
            elif (
                action.option_strings and action.dest != "help" and action.help != argparse.SUPPRESS
            ):
                yield words, action.option_strings[-1]

    yield from walk(build_parser()[0], "golden")
    yield from walk(_parser(), "vpmoe")


@pytest.mark.parametrize(("command", "option"), list(options_of_commands()))
def test_a_document_of_a_command_names_its_option(
    repository: Path, command: str, option: str
) -> None:
    described = [
        text
        for path in (repository / "docs").rglob("*.md")
        if re.search(rf"\b{command}\b", text := path.read_text())
    ]
    named = re.compile(rf"(?<![\w-]){option}(?![\w-])")
    assert any(named.search(text) for text in described), "no document of the command has it"
