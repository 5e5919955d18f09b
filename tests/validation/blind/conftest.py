"""A repository without torch, whose cases leave some of its code alone."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coverage", reason="golden coverage needs coverage.py")

FILES = {
    "pyproject.toml": '[tool.golden]\ncases = ["engine_cases"]\n',
    ".gitignore": "__pycache__/\nruns/\n",
    "engine/__init__.py": "",
    "engine/model.py": '''\
"""A curve."""

SCALE = 3.0


def weight(step: int, late: bool = False) -> float:
    """What is trained."""
    if late:
        return 0.0
    return SCALE / (step + 1)


def table() -> list[int]:
    """Called while the module is imported, and never by a run."""
    return [1, 2]


SIZES = table()


def never(
    value: int,
) -> int:
    """Nobody calls it."""
    value += 1
    return value * 2
''',
    "engine/parts.py": '''\
"""What runs in other processes than the case's first."""

import os
import subprocess
import sys
from pathlib import Path


def of_rank(rank: int) -> float:
    if rank == 1:
        return 0.25
    return 0.5


def forked(path: Path) -> float:
    pid = os.fork()
    if pid == 0:
        path.write_text(in_fork())
        os._exit(0)
    os.waitpid(pid, 0)
    return float(path.read_text())


def in_fork() -> str:
    return "0.75"


def spawned() -> float:
    command = [sys.executable, "-m", "engine.program"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
''',
    "engine/program.py": """\
def told() -> str:
    return "0.125"


print(told())
""",
    "engine_cases.py": '''\
"""The cases."""

import os
import tempfile
from pathlib import Path

from validation import Case, Field, Gated


def run(recorder, settings):
    from engine import model

    for step in range(1, settings["steps"] + 1):
        recorder.curve(step, "lm_loss", model.weight(step))
    if settings.get("elsewhere"):
        from engine import parts

        with tempfile.TemporaryDirectory() as folder:
            recorder.curve(1, "forked", parts.forked(Path(folder) / "value"))
        recorder.curve(1, "spawned", parts.spawned())
    if settings.get("ranks"):
        from engine import parts

        recorder.curve(1, "rank", parts.of_rank(int(os.environ["RANK"])))


def fields(cases):
    said = {case.name: case.settings for case in cases}
    return {
        "steps": Field(1, {name: s["steps"] for name, s in said.items()}),
        "ranks": Field(False, {name: s.get("ranks", False) for name, s in said.items()}),
        "rate": Field(0.1, {name: s.get("rate", 0.1) for name, s in said.items()}),
        "nowhere": Field(None, {}),
    }


GATED = Gated(packages=["engine"], fields="engine_cases:fields")


def case(name, processes=1, **settings):
    return Case(
        name=name,
        description="a curve",
        lanes=["cpu"],
        target="engine_cases:run",
        settings={"steps": 2, **settings},
        processes=processes,
        preload=["engine.model"],
        timeout=60.0,
    )


CASES = [case("alone"), case("elsewhere", elsewhere=True), case("ranks", processes=2, ranks=True)]
''',
    "tests/test_model.py": """\
from engine.model import never, weight


def test_never():
    assert never(1) == 4


def test_weight():
    assert weight(0, True) == 0.0
""",
}


@pytest.fixture(scope="session")
def _engine_template(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = Path(__file__).parents[1] / "plain" / "project.py"
    spec = importlib.util.spec_from_file_location("project_of_blind_tests", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    root = tmp_path_factory.mktemp("engine") / "repository"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    project = module.Project(root)
    for words in (("init", "-q", "-b", "main"), ("config", "user.name", "Ada")):
        project.git(*words)
    project.git("config", "user.email", "ada@example.org")
    project.commit("An engine")
    answer = project.golden("update", "--reason", "the first goldens")
    assert answer.code == 0, answer.err
    project.commit("Goldens")
    answer = project.golden("coverage", "--accept", "--reason", "the first figure")
    assert answer.code == 0, answer.err
    project.commit("Coverage")
    return project


@pytest.fixture
def engine(_engine_template: Any, tmp_path: Path) -> Any:
    """A repository with goldens, an accepted measurement, and the run folder that it came from."""
    return _engine_template.copy(tmp_path / "repository")
