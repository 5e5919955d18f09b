"""`ci/jobs/lint.sh`, in a copy of the repository's pipelines."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_INJECTION = """\
name: greet
on: [issues]
permissions: {}
concurrency:
  group: greet
jobs:
  greet:
    runs-on: ubuntu-24.04
    steps:
      - run: echo "${{ github.event.issue.number }}"
      - uses: somebody/greets@main
"""
_BROKEN = "name: greet\non: [issues]\njobs:\n  greet:\n    steps:\n      - run: echo hello\n"


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """The pipelines in a repository of their own."""
    for tool in ("actionlint", "zizmor", "shellcheck"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; `tox -m lint` has it")
    root = tmp_path / "checkout"
    root.mkdir()
    for name in (".github", ".ci", "ci"):
        shutil.copytree(repository / name, root / name)
    subprocess.run(["git", "init", "-q", root], check=True)
    return root


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Runs the script."""
    return subprocess.run(
        ["bash", root / "ci/jobs/lint.sh"],
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_pipelines_have_no_finding(checkout: Path) -> None:
    done = lint(checkout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("workflow", "said"), [(_INJECTION, "unpinned-uses"), (_BROKEN, '"runs-on" section is missing')]
)
def test_a_bad_workflow_fails(checkout: Path, workflow: str, said: str) -> None:
    (checkout / ".github/workflows/greet.yml").write_text(workflow)
    done = lint(checkout)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
    assert "greet.yml" in done.stdout + done.stderr
