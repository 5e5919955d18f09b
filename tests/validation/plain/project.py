"""A repository of somebody else: `plain_loop`, its cases, and `golden` run on it as a process."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import validation

HERE = Path(__file__).resolve().parent
# Where the harness that is tested stands: the checkout, or what is installed.
HARNESS = Path(validation.__file__).resolve().parents[1]
_PYPROJECT = """\
[tool.golden]
cases = ["plain_cases"]
faults = ["plain_cases"]
recorded = ["numpy", "torch", "transformer-engine"]

[tool.golden.lanes.h200]
gpus = 1
"""


@dataclass(frozen=True)
class Answer:
    """What a command left."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """stdout, which is one JSON object."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Project:
    """A git repository with the plain training loop."""

    root: Path

    def environment(self, **more: str) -> dict[str, str]:
        """Variables of a `golden` process; a keyword adds one."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "PYTEST"))}
        return {
            **inherited,
            "PYTHONPATH": str(HARNESS),
            "PYTHONDONTWRITEBYTECODE": "1",
            "GOLDEN_MLFLOW": "0",
            "OMP_NUM_THREADS": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            **more,
        }

    def golden(self, *words: str, cwd: Path | None = None, **environment: str) -> Answer:
        """Runs `golden` in the repository."""
        done = subprocess.run(
            [sys.executable, "-m", "validation.cli", *words],
            cwd=cwd or self.root,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def git(self, *words: str) -> str:
        """Runs git in the repository; returns its output."""
        done = self._git(*words)
        assert done.returncode == 0, f"git {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def git_code(self, *words: str) -> int:
        """Runs git in the repository; returns its exit code."""
        return self._git(*words).returncode

    def _git(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *words],
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    def commit(self, message: str) -> str:
        """Commits everything; returns the commit."""
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD").strip()

    def edit(self, old: str, new: str, name: str = "plain_loop.py") -> None:
        """Replaces text that must be there."""
        path = self.root / name
        text = path.read_text()
        assert old in text, old
        path.write_text(text.replace(old, new))

    def latest_run(self) -> Path:
        """The folder that the latest check left."""
        return max(path.parent for path in (self.root / "runs").glob("*/verdict.json"))

    def copy(self, root: Path) -> "Project":
        """The same repository elsewhere."""
        shutil.copytree(self.root, root)
        return Project(root)


def make_project(folder: Path) -> Project:
    """A fresh repository in `folder`, without goldens."""
    root = folder / "repository"
    root.mkdir(parents=True)
    for name in ("plain_loop.py", "plain_cases.py"):
        shutil.copy(HERE / name, root / name)
    (root / "pyproject.toml").write_text(_PYPROJECT)
    (root / ".gitignore").write_text("__pycache__/\nruns/\n")
    project = Project(root)
    project.git("init", "-q", "-b", "main")
    project.git("config", "user.name", "Ada")
    project.git("config", "user.email", "ada@example.org")
    project.commit("A training loop")
    return project
