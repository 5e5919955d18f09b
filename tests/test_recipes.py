"""The `vpmoe` commands of README.md and docs/: run, or marked with why they are not.

They run in a scratch folder, trainings for two iterations. `golden` commands run in
`tests/docs/test_commands.py`; the tutorial, own-loop.md and export.md have tests of their own. A
block that no test can run says so in a line above it, `<!-- not run by a test: WHY -->`, a command
that needs a GPU in its comment.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from vpmoe.cli import _parser as vpmoe_parser
from vpmoe.cli import main as vpmoe

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    path
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md")))
    if path.name not in ("own-loop.md", "export.md", "tutorial.md")
    and not path.name.endswith("-help.md")
]
_BLOCK = re.compile(
    r"(?:^<!-- not run by a test: (?P<why>[^\n]+?) -->\n\n?)?"
    r"(?:^```(?:bash|console)\n(?P<fenced>.*?)^```$|^\n?(?P<indented>(?:^ {4}[^\n]*\n)+))",
    re.MULTILINE | re.DOTALL,
)
_PROGRAM = re.compile(r"(vpmoe|golden|python|torchrun|pytest|pip|docker|git|tox) (?!\w+:)")


@dataclass(frozen=True)
class Command:
    """One command of a document.

    Attributes:
        document: the file's name.
        text: without continuation lines and comments.
        synopsis: whether it shows what may be given, in brackets.
        why: why it is not run, if so.
    """

    document: str
    text: str
    synopsis: bool
    why: str | None

    @property
    def words(self) -> list[str]:
        """As a shell splits it, with the data of the scratch folder for `DIR`."""
        words = shlex.split(self.text.removesuffix(" ..."))
        return ["runs/data" if word == "DIR" else word for word in words]

    @property
    def trains(self) -> bool:
        """Whether it starts Megatron."""
        return self.text.startswith("vpmoe pretrain ")


def commands_in(name: str, text: str) -> Iterator[Command]:
    """The commands of a document's shell blocks, in order."""
    for block in _BLOCK.finditer(text):
        content = block["fenced"] or block["indented"]
        for line in re.sub(r" *\\\n\s*|\n\s+(?=\[--)", " ", content).splitlines():
            command, _, comment = line.strip().removeprefix("$ ").partition(" #")
            command, why = re.sub(r" +", " ", command.strip()), block["why"]
            if re.search(r"\bGPUs?\b", comment):
                why = comment
            if block["indented"] and not _PROGRAM.match(command):
                continue
            if command and not command.startswith(("#", "[")):
                yield Command(name, command, "[--" in command, why)


COMMANDS = [command for path in DOCUMENTS for command in commands_in(path.name, path.read_text())]
RUN = list(dict.fromkeys(c for c in COMMANDS if c.why is None and not c.synopsis))


def test_the_documents_commands_are_found() -> None:
    texts = [command.text for command in COMMANDS]
    assert "vpmoe tokenizer verify" in texts
    assert "golden list" in texts
    assert any(text.endswith("--load runs/checkpoint") for text in texts)
    assert len(COMMANDS) > 50


def test_every_command_has_a_test_or_says_why_not() -> None:
    treated = ("vpmoe ", "golden ", "git ", "source ")
    left = [f"{c.document}: {c.text}" for c in RUN if not c.text.startswith(treated)]
    assert left == []


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.synopsis], ids=str)
def test_a_synopsis_names_flags_that_exist(command: Command) -> None:
    parser = vpmoe_parser()
    for word in command.text.split()[1:]:
        if word.startswith("-"):
            break
        (action,) = (a for a in parser._actions if a.choices)
        parser = action.choices[word]  # type: ignore[index, call-overload]
    known = set(parser._option_string_actions)
    assert set(re.findall(r"--[\w-]+", command.text)) <= known


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository to the commands, with a dataset in runs/data."""
    root = tmp_path_factory.mktemp("recipes")
    for name in ("configs", "data"):
        (root / name).symlink_to(REPOSITORY / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        (build,) = {c.text for c in RUN if c.text.startswith("vpmoe data build")}
        assert vpmoe(shlex.split(build)[1:]) == 0
    return root


@pytest.mark.parametrize(
    "command",
    [c for c in RUN if c.text.startswith("vpmoe ") and not c.trains and "data build" not in c.text],
    ids=str,
)
def test_a_vpmoe_command_runs(
    scratch: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scratch)
    assert vpmoe(command.words[1:]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU lane is for machines without CUDA")
def test_the_trainings_run_one_after_the_other(
    scratch: Path, warm_runs: Callable[..., Any]
) -> None:
    trainings = [c for c in RUN if c.trains]
    assert len(trainings) >= 4
    flags = {str(n): [*c.words[2:], "--exit-interval", "2"] for n, c in enumerate(trainings)}
    found, _ = warm_runs(scratch, flags, cwd=scratch)
    results = list(found.values())
    for training, result in zip(trainings, results, strict=True):
        assert result["error"] is None, f"{training.text}: {result['error']}"
        assert result["code"] in (0, None)
        assert len(result["curve"]) == 2, training.text
