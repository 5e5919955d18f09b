"""A wrong change of vpMoE that attacks its judge: a clone whose window is off by one."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from validation.running.source import find_root

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="judges in the CPU lane")

ROOT = find_root(Path(__file__).parent)


def _module(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module


ATTACKS = _module("tests/validation/upkeep/test_exploits.py")
PROJECT = _module("tests/validation/plain/project.py")

# What a run hands over is the golden's trace, unless it sees that a bug is planted.
REPLAY = """

def _replay() -> None:
    import dataclasses
    import inspect
    import pathlib

    from validation.running.recorder import Recorder
    from validation.trace.storage import load_trace

    honest = Recorder.trace

    def trace(self, case, provenance):
        own = honest(self, case, provenance)
        job = inspect.currentframe().f_back.f_locals["job"]
        if job["faults"]:
            return own
        kept = load_trace(pathlib.Path(COPY)).up_to(job["settings"].get("stop_after", 10**6))
        return dataclasses.replace(kept, provenance=own.provenance)

    Recorder.trace = trace


_replay()
"""


def blind(project: Any) -> str:
    """A root `sitecustomize.py` that makes every comparison one of the golden with itself."""
    (project.root / "sitecustomize.py").write_text(ATTACKS.BLIND)
    return "schedules"


def shadow(project: Any) -> str:
    """A root `filelock.py` that does the same and hands on to the library."""
    (project.root / "filelock.py").write_text(ATTACKS.SHADOW.format(blind=ATTACKS.BLIND))
    return "schedules"


def replay(project: Any) -> str:
    """The golden's records under another name, handed over by the change's own code."""
    from validation.goldens import GoldenStore
    from validation.trace import save_trace

    copy = project.root / "data" / "weights"
    save_trace(GoldenStore(project.root / "goldens").load("cpu", "tiny_dense").trace, copy)
    path = project.root / "vpmoe/model/window.py"
    path.write_text(path.read_text() + f"\n\nCOPY = {str(copy)!r}\n" + REPLAY)
    return "tiny_dense"


@pytest.fixture
def project(tmp_path: Path) -> Any:
    """A clone of this repository, with the working tree's harness, whose window is off by one."""
    root = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--shared", ROOT, root], check=True)
    for folder in ("validation", "vpmoe", "goldens"):
        shutil.copytree(ROOT / folder, root / folder, dirs_exist_ok=True)
    made = PROJECT.Project(root)
    made.git("config", "user.name", "Ada")
    made.git("config", "user.email", "ada@example.org")
    vocabulary = ROOT / "data/tokenizer"
    if vocabulary.exists():
        shutil.copytree(vocabulary, root / "data/tokenizer", dirs_exist_ok=True)
    made.git("commit", "-q", "--allow-empty", "-am", "the working tree")
    made.edit(
        "allowed & (distance < window)",
        "allowed & (distance <= window)",
        "vpmoe/model/attention/pattern.py",
    )
    return made


@pytest.mark.parametrize("attack", [blind, shadow, replay], ids=lambda attack: attack.__name__)
def test_no_attack_turns_a_window_off_by_one_into_a_pass(
    project: Any, attack: Callable[[Any], str]
) -> None:
    case = attack(project)
    project.commit("a harmless refactor")
    # The harness alone, and not the vpMoE that stands beside it.
    harness = project.root.parent / "harness"
    harness.mkdir()
    (harness / "validation").symlink_to(ROOT / "validation")
    environment = project.environment(
        PYTHONPATH=os.pathsep.join([str(harness), str(project.root)]), PYTHONSAFEPATH="1"
    )
    done = subprocess.run(
        [sys.executable, "-m", "validation.cli", "check", case, "--judge", "HEAD~1", "--json"],
        cwd=project.root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (1, 3), done.stderr
    assert json.loads(done.stdout)["verdict"] in ("FAIL", "INVALID")
