"""`docs/own-loop.md`, walked literally: its files and commands, in an empty environment.

The environment has the wheel that the document's first step builds, with its base dependencies.
torch is the tests' own, seen through a folder of links with nothing else in it, and only where the
walk says so.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`([\w./-]+)`:\n\n\Z")
_EXITS = re.compile(r"# exits (\d+)$")
# The walk's environment sees torch where this variable is set: a line of a .pth may be a statement.
_LINK = "import os, sys; os.environ.get('WALK_WITH_TORCH') and sys.path.append({folder!r})\n"


@dataclass(frozen=True)
class Step:
    """One block of the document: a file to write, commands to run, or what the last one shows."""

    kind: str
    content: str
    file: str = ""


def steps_of(document: str) -> Iterator[Step]:
    """The blocks of a document, in order; each must be of a known kind."""
    for block in _FENCE.finditer(document):
        kind, content = block[1], block[2]
        named = _FILE.search(document[: block.start()])
        if kind in ("bash", "text"):
            yield Step(kind, content)
        else:
            assert named, f"a block of {kind!r} that no `FILE`: names:\n{content}"
            yield Step("file", content, named[1])


def sections_of(document: str) -> Sequence[str]:
    """The numbered sections, the first one first."""
    return re.split(r"^## \d+\. ", document, flags=re.MULTILINE)[1:]


@dataclass(frozen=True)
class Walk:
    """Somebody at a shell, in a new repository, with the environment of the document's first step.

    Attributes:
        root: of the repository.
        environment: variables of every command.
    """

    root: Path
    environment: dict[str, str]

    def shell(self, line: str) -> subprocess.CompletedProcess[str]:
        """Runs a line as it is written."""
        return subprocess.run(
            ["bash", "-c", line],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def take(self, steps: Iterator[Step]) -> int:
        """Takes the steps; returns how many commands it ran."""
        shown, count = "", 0
        for step in steps:
            if step.kind == "file":
                (self.root / step.file).write_text(step.content)
            elif step.kind == "text":
                assert step.content in shown, f"expected {step.content!r} in:\n{shown}"
            for line in step.content.splitlines() if step.kind == "bash" else ():
                done, count = self.shell(line), count + 1
                expected = _EXITS.search(line)
                assert done.returncode == int(expected[1] if expected else 0), (
                    f"{line}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
                )
                shown = done.stdout
        return count

    def verdicts(self) -> list[Any]:
        """Of the checks that were made, oldest first."""
        return [json.loads(p.read_text()) for p in sorted(self.root.glob("runs/*/verdict.json"))]

    def provenance(self) -> list[Any]:
        """Of the checks' traces, oldest first."""
        heads = sorted(p.parent for p in self.root.glob("runs/*/verdict.json"))
        traces = [next(head.glob("traces/*/trace.json")) for head in heads]
        return [json.loads(path.read_text())["provenance"] for path in traces]


def closure(name: str, present: set[str]) -> set[str]:
    """A distribution and all that it needs here, without what is present."""
    found, waiting = set[str](), [name]
    while waiting:
        taken = waiting.pop().lower().replace("_", "-")
        if taken in found | present:
            continue
        try:
            needs = importlib.metadata.requires(taken) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # a bundle of others, or of another platform
        found.add(taken)
        parsed = [Requirement(need) for need in needs]
        waiting += [r.name for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def link_torch(folder: Path, present: set[str]) -> None:
    """Links exactly torch and what it needs of this environment into a folder."""
    folder.mkdir()
    for name in closure("torch", present):
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}
        for top in tops - {"__pycache__"}:
            place = folder / top
            if not place.exists():
                place.symlink_to(Path(str(distribution.locate_file(top))))
    # The CUDA libraries may come with a bundle that is no distribution of its own.
    nvidia = Path(str(importlib.metadata.distribution("torch").locate_file("nvidia")))
    if nvidia.is_dir() and not (folder / "nvidia").exists():
        (folder / "nvidia").symlink_to(nvidia)


@pytest.fixture(scope="module")
def document(repository: Path) -> Sequence[str]:
    """The document's sections."""
    return sections_of((repository / "docs" / "own-loop.md").read_text())


@pytest.fixture(scope="module")
def shell(
    repository: Path, document: Sequence[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Variables of a shell in an environment that has taken the document's first step."""
    home = tmp_path_factory.mktemp("home")
    environment = home / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    variables = {
        "HOME": str(home),
        "VPMOE": str(repository),
        "PATH": os.pathsep.join([str(environment / "bin"), "/usr/bin", "/bin"]),
        "PIP_CONSTRAINT": str(repository / "constraints.txt"),
        "GIT_AUTHOR_NAME": "Ada",
        "GIT_AUTHOR_EMAIL": "ada@example.org",
        "GIT_COMMITTER_NAME": "Ada",
        "GIT_COMMITTER_EMAIL": "ada@example.org",
        # How this machine reaches the package index.
        **{k: v for k, v in os.environ.items() if k.startswith("PIP_") or "proxy" in k.lower()},
    }
    assert Walk(home, variables).take(steps_of(document[0])) == 2
    (site,) = environment.glob("lib/python*/site-packages")
    assert not list(site.glob("*editable*"))
    present = {
        d.name.lower().replace("_", "-") for d in importlib.metadata.distributions(path=[str(site)])
    }
    assert "vpmoe-validation" in present
    assert "torch" not in present
    link_torch(home / "torch", present)
    (site / "torch_of_the_tests.pth").write_text(_LINK.format(folder=str(home / "torch")))
    return variables


def new_walk(root: Path, variables: dict[str, str], **more: str) -> Walk:
    """A walk in a new repository that has nothing at all."""
    root.mkdir()
    walk = Walk(root, {**variables, **more})
    assert walk.shell("git init --quiet --initial-branch main").returncode == 0
    return walk


def test_a_torch_loop_is_gated_as_the_document_says(
    document: Sequence[str], shell: dict[str, str], tmp_path: Path
) -> None:
    walk = new_walk(tmp_path / "repository", shell, WALK_WITH_TORCH="1")
    assert walk.take(steps_of("".join(document[1:5]))) >= 14

    verdicts = walk.verdicts()
    assert [verdict["verdict"] for verdict in verdicts] == ["PASS", "FAIL", "PASS"]
    assert verdicts[0]["canary"] == verdicts[2]["canary"]
    assert verdicts[0]["canary"]["fault"] == "wide_window"
    assert verdicts[0]["canary"]["caught"]
    assert [case["case"] for case in verdicts[0]["cases"]] == ["plain_loss"]
    provenance = walk.provenance()
    assert provenance[0]["commit"] != provenance[2]["commit"]
    assert [made["dirty"] for made in provenance] == [[], ["loop.py"], []]
    assert "runs/" not in walk.shell("git status --porcelain").stdout

    # Of the package's own cases and faults nothing shows, though the package is installed.
    listed = json.loads(walk.shell("golden list --json").stdout)
    assert [row["case"] for row in listed["cases"]] == ["plain_loss"]
    faults = json.loads(walk.shell("golden faults --only wide_window --json").stdout)
    assert [(fault["id"], fault["killed"]) for fault in faults["faults"]] == [("wide_window", True)]
    unknown = walk.shell("golden faults --only window-plus-one")
    assert unknown.returncode == 2
    assert "faults: wide_window" in unknown.stderr


def test_a_loop_without_torch_is_gated_on_the_base_install(
    document: Sequence[str], shell: dict[str, str], tmp_path: Path
) -> None:
    walk = new_walk(tmp_path / "repository", shell)
    assert walk.shell("python -c 'import torch'").returncode == 1
    assert walk.take(steps_of(document[5])) == 7
    (verdict,) = walk.verdicts()
    assert verdict["verdict"] == "PASS"
    assert verdict["cases"][0]["compared"] == 40
    head = json.loads((walk.root / "goldens" / "cpu" / "fit" / "golden.json").read_text())
    assert head["tolerances"]
