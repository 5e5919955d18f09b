"""The small project that the harness's tests use, for the scripts' tests too."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .runner import JUDGE_STUB, STUB, VERDICT, Runner, answer, make_runner

# The scripts in ci/ are run as files, which see each other.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "ci"))

_NAME = "validation_conftest_of_tests"
_SPEC = importlib.util.spec_from_file_location(
    _NAME, Path(__file__).resolve().parents[1] / "validation" / "conftest.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules[_NAME] = _MODULE
_SPEC.loader.exec_module(_MODULE)

plain_project = _MODULE.plain_project
_golden_template = _MODULE._golden_template
golden_project = _MODULE.golden_project


@pytest.fixture
def project_type() -> Any:
    """The class of a repository that `golden` is run in."""
    return _MODULE._project_module().Project


@pytest.fixture
def stubbed(repository: Path, project_type: Any, tmp_path: Path) -> Runner:
    """A fresh clone of this repository, and a `golden` that writes down how it was called."""
    root = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--shared", repository, root], check=True)
    project = project_type(root)
    project.git("config", "user.name", "Ada")
    project.git("config", "user.email", "ada@example.org")
    # What is being tested is the working tree, which a commit may lag behind.
    for folder in ("ci", "validation"):
        shutil.copytree(repository / folder, root / folder, dirs_exist_ok=True)
    shutil.copy(repository / "pyproject.toml", root)
    project.git("add", "-A")
    project.git("commit", "-q", "--allow-empty", "-m", "the working tree")
    made = make_runner(project, tmp_path / "tools")
    made.install("golden", STUB)
    made.install("python3", JUDGE_STUB)
    answer(made, "check", 1, VERDICT)
    return made
