"""A shell for the commands of documents, which has `golden` on its path."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]+?) -->\n)?^```(?P<kind>bash|console|text)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_EXITS = re.compile(r"#.*\bexits (\d+)")


@dataclass(frozen=True)
class Line:
    """A command of a document.

    Attributes:
        text: without its comment.
        status: the exit status that its comment names, or 0.
    """

    text: str
    status: int


@dataclass(frozen=True)
class Block:
    """A block of commands, or of what the commands before it print.

    Attributes:
        kind: `bash` or `text`.
        text: its content.
        mark: of the comment above it, if there is one.
    """

    kind: str
    text: str
    mark: str

    @property
    def lines(self) -> Iterator[Line]:
        """The commands, with continuation lines joined."""
        for line in re.sub(r" *\\\n\s*", " ", self.text).splitlines():
            command = line.strip().removeprefix("$ ")
            text = re.split(r"\s+#\s", command, maxsplit=1)[0].strip()
            if text and not text.startswith("#"):
                said = _EXITS.search(command)
                yield Line(text, int(said[1]) if said else 0)


@dataclass
class Shell:
    """Somebody at a shell, who can change folders.

    Attributes:
        folder: where the next command runs.
        variables: of every command.
        said: what the commands have printed since it was last cleared.
    """

    folder: Path
    variables: Mapping[str, str]
    said: str = field(default="")

    def run(self, text: str) -> int:
        """Runs a command as it is written; returns its exit status."""
        if text.startswith("cd "):
            self.folder = (self.folder / text.removeprefix("cd ")).resolve()
            return 0
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=self.folder,
            env=dict(self.variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        self.said += done.stdout
        print(f"{done.returncode}: {text}")
        return done.returncode


def blocks_of(document: str) -> list[Block]:
    """The shell blocks of a document, and the outputs that it shows, in order."""
    return [
        Block("text" if m["kind"] == "text" else "bash", m["text"], m["mark"] or "")
        for m in _FENCE.finditer(document)
    ]


@pytest.fixture(scope="session")
def blocks() -> Callable[[str], list[Block]]:
    """Splits a document."""
    return blocks_of


@pytest.fixture(scope="session")
def new_shell(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], Shell]:
    """Opens a shell in a folder."""
    programs = tmp_path_factory.mktemp("bin")
    golden = programs / "golden"
    golden.write_text(f'#!/bin/sh\nexec {sys.executable} -m validation.cli "$@"\n')
    golden.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "GIT_"))}
    variables = {
        **kept,
        "HOME": str(programs),
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "PYTHONPATH": str(repository),
        "GOLDEN_MLFLOW": "0",
        **{
            f"GIT_{who}_{what}": value
            for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "Ada"), ("EMAIL", "ada@example.org"))
        },
    }
    return lambda folder: Shell(folder, variables)
