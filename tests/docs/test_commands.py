"""Every `golden` command of README and docs runs, in a repository whose cases have the names used.

The cases are light loops without torch. A block runs in a copy of the repository of its own if it
changes something. A command ends with the status that its comment names (`# exits 1`), else with 0;
`golden bench` may also find the machine busy, which is UNFIT. What cannot run here says why in a
comment above its block. The tutorial and own-loop.md have tests of their own.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CASES = """\
import contextlib
import sys
import time
from unittest.mock import patch

import numpy as np
from validation import Case, Fault

import loop

STEP = 0.02


def run(recorder, settings):
    recorder.table("window/layer.0", [[max(0, i - loop.WINDOW), i] for i in range(8)])
    steps = min(settings.get("stop_after", 6), 6)
    for step, (loss, norm) in enumerate(loop.train(steps), start=1):
        recorder.curve(step, "lm_loss", loss)
        recorder.curve(step, "grad_norm", norm, phase="reduction")


def paced(pacer, settings):
    pacer.describe(flops_per_token=6)
    while True:
        pacer.before_step()
        pacer.tokens(1)
        time.sleep(STEP)
        with pacer.optimizer():
            time.sleep(STEP / 10)


@contextlib.contextmanager
def window_plus_one():
    with patch.object(loop, "WINDOW", loop.WINDOW + 1):
        yield


@contextlib.contextmanager
def slow_step():  # by a third, so that any machine can find it
    with patch.object(sys.modules[__name__], "STEP", STEP * 4 / 3):
        yield


def fault(name, plant):
    return Fault(id=name, category="window", component="window", imitates="an off-by-one",
                 plant=plant, case="tiny_moe", canary_steps=2)


CASES = [
    Case(name="tiny_moe", description="a light loop", lanes=["cpu"], target="cases:run",
         preload=["numpy"], throughput="cases:paced"),
]
FAULTS = [fault("window-plus-one", "cases:window_plus_one")]
THROUGHPUT_FAULTS = [fault("slow-step-3", "cases:slow_step")]
"""
LOOP = """\
import numpy as np

WINDOW = 4
RATE = 0.1


def train(steps):
    source = np.random.default_rng(1)
    inputs, weights = source.standard_normal((64, 8)), np.zeros(8)
    targets = inputs[:, :WINDOW] @ 0.5 ** np.arange(WINDOW)
    for _ in range(steps):
        error = inputs @ weights - targets
        gradient = inputs.T @ error / 64
        yield float(np.mean(error**2)), float(np.linalg.norm(gradient))
        weights -= RATE * gradient
"""
# What a document's story has done before its block, by the name in the comment above it.
PREPARED = {"a wider window": "sed --in-place 's/WINDOW = 4/WINDOW = 6/' loop.py"}
_CHANGES = re.compile(
    r"^(git (add|commit)|golden (update|calibrate|rebase|setup|coverage --accept))", re.MULTILINE
)
_ELSEWHERE = ("own-loop.md", "tutorial.md")
# Commands that are part of a table or a sentence, whose words a reader fills in.
_INLINE = re.compile(r"`(golden [a-z][^`\n|]*)`")


@pytest.fixture(scope="module")
def project(new_shell: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with an accepted change: HEAD~1 has its code, HEAD its golden as well."""
    root = tmp_path_factory.mktemp("project") / "checkout"
    root.mkdir()
    for name, text in (("cases.py", CASES), ("loop.py", LOOP), (".gitignore", "out/\n")):
        (root / name).write_text(text)
    (root / "golden.toml").write_text('cases = ["cases"]\nfaults = ["cases"]\n')
    shell = new_shell(root)
    for line in (
        "git init --quiet --initial-branch main",
        "git add --all && git commit --quiet --message 'A loop'",
        "golden update --reason first",
        "git add --all && git commit --quiet --message 'Its golden' && git tag v1.2",
        "sed --in-place 's/RATE = 0.1/RATE = 0.2/' loop.py",
        "git commit --quiet --all --message 'Faster'",
        "golden update --reason faster --expect 'tiny_moe:*:any'",
        "git add --all && git commit --quiet --message 'Accept it'",
        "git update-ref refs/remotes/origin/main HEAD",
        "golden check",  # what `golden explain` explains
    ):
        assert shell.run(line) == 0, f"{line}\n{shell.said}"
    return root


def documents(repository: Path) -> list[Path]:
    """Those whose commands are run here."""
    found = [repository / "README.md", *sorted((repository / "docs").rglob("*.md"))]
    return [p for p in found if p.name not in _ELSEWHERE and not p.name.endswith("-help.md")]


def allowed(text: str, status: int) -> set[int]:
    """The exit statuses that a command may end with."""
    return {status, 4} if text.startswith("golden bench") else {status}


def test_golden_commands_end_as_their_documents_say(
    repository: Path,
    project: Path,
    blocks: Callable[[str], list[Any]],
    new_shell: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    reading: dict[str, tuple[int, str]] = {}
    wrong: list[str] = []
    ran = 0
    for path in documents(repository):
        for number, block in enumerate(blocks(path.read_text())):
            if block.kind != "bash" or block.mark.startswith("not run by a test"):
                continue
            if not any(line.text.startswith("golden ") for line in block.lines):
                continue
            if not _CHANGES.search(block.text):
                for line in block.lines:
                    if line.text.startswith("golden "):
                        reading[line.text] = (line.status, path.name)
                continue
            copy = tmp_path / f"{path.stem}-{number}"
            shutil.copytree(project, copy, symlinks=True)
            shell = new_shell(copy)
            if block.mark.startswith("prepared by a test: "):
                assert shell.run(PREPARED[block.mark.removeprefix("prepared by a test: ")]) == 0
            for line in block.lines:
                status, ran = shell.run(line.text), ran + 1
                if status not in allowed(line.text, line.status):
                    wrong.append(f"{path.name}: {line.text}: exit {status}\n{shell.said[-1500:]}")
    shell = new_shell(project)
    for text, (expected, name) in reading.items():
        shell.said = ""
        status, ran = shell.run(text), ran + 1
        if status not in allowed(text, expected):
            wrong.append(f"{name}: {text}: exit {status}\n{shell.said[-1500:]}")
    assert wrong == []
    assert ran >= 20


def test_commands_in_sentences_name_what_exists(repository: Path) -> None:
    from validation.cli.program import build_parser

    parser, _ = build_parser()
    (commands,) = (a for a in parser._actions if a.choices and "check" in a.choices)
    wrong = []
    for path in documents(repository):
        for text in _INLINE.findall(path.read_text()):
            name, flags = text.split()[1], re.findall(r"(?<![\w-])--[a-z][\w-]*", text)
            command = commands.choices.get(name)  # type: ignore[union-attr, call-overload]
            known = command._option_string_actions if command else {}
            if command is None or any(flag not in known for flag in flags):
                wrong.append(f"{path.name}: {text}")
    assert wrong == []
