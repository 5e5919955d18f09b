"""The job scripts, run as a runner runs them, on a small project of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CI = Path(__file__).resolve().parents[2] / "ci"


@dataclass(frozen=True)
class Done:
    """What a script left."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Runner:
    """A machine with `golden` on its PATH, and a clone of a project."""

    project: Any
    tools: Path

    def install(self, name: str, text: str) -> None:
        """Puts a command on the PATH."""
        path = self.tools / name
        path.write_text(text)
        path.chmod(0o755)

    def run(self, script: str, *words: str, **variables: str) -> Done:
        """Runs a job script in the clone."""
        environment = self.project.environment(**variables)
        environment["PATH"] = os.pathsep.join([str(self.tools), "/usr/bin", "/bin"])
        done = subprocess.run(
            ["bash", str(CI / "jobs" / script), *words],
            cwd=self.project.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def verdict(self, folder: str) -> Any:
        """The JSON in a folder of the clone."""
        return json.loads((self.project.root / folder / "verdict.json").read_text())


def recorded(runner: Runner) -> Sequence[Sequence[str]]:
    """The words of each call of the stub."""
    log = runner.tools / "calls"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


_STUB = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
with (here / "calls").open("a") as log:
    log.write(json.dumps([*sys.argv[1:], "GATE=" + os.environ["PYTHONPATH"].split(":")[0]]) + "\\n")
answer = here / ("answer-" + sys.argv[1])
if answer.exists():
    code, _, text = answer.read_text().partition(" ")
    print(text, end="")
    sys.exit(int(code))
"""
_VERDICT: dict[str, Any] = {
    "verdict": "FAIL",
    "lane": "cpu",
    "seconds": 3.0,
    "environment": {},
    "canary": {"fault": "wide_window", "caught": True},
    "cases": [
        {
            "case": "plain_seed",
            "verdict": "FAIL",
            "compared": 10,
            "identical": 5,
            "skipped_because": None,
            "seconds": 2.0,
            "first_divergence": None,
            "message": "1 of 10 records differ",
        }
    ],
}


def answer(runner: Runner, command: str, code: int, data: Any) -> None:
    """What the stub prints and exits with."""
    (runner.tools / f"answer-{command}").write_text(f"{code} {json.dumps(data)}")


def make_runner(project: Any, tools: Path) -> Runner:
    """A runner whose `golden` is the real one."""
    tools.mkdir()
    made = Runner(project, tools)
    made.install("golden", f'#!/bin/sh\nexec "{sys.executable}" -P -m validation.cli "$@"\n')
    made.install("python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    return made


@pytest.fixture
def stubbed(repository: Path, project_type: Any, tmp_path: Path) -> Runner:
    """A fresh clone of this repository, and a `golden` that writes down how it was called."""
    root, site = tmp_path / "clone", tmp_path / "site"
    site.mkdir()
    subprocess.run(["git", "clone", "-q", "--shared", repository, root], check=True)
    project = project_type(root, site)
    project.git("config", "user.name", "Ada")
    project.git("config", "user.email", "ada@example.org")
    # What is being tested is the working tree, which a commit may lag behind.
    for folder in ("ci", "validation"):
        shutil.copytree(repository / folder, root / folder, dirs_exist_ok=True)
    project.git("add", "-A")
    project.git("commit", "-q", "--allow-empty", "-m", "the working tree")
    made = make_runner(project, tmp_path / "tools")
    made.install("golden", _STUB)
    answer(made, "check", 1, _VERDICT)
    return made


def test_pre_merge_in_a_fresh_clone_says_what_golden_check_says(
    golden_project: Any, tmp_path: Path
) -> None:
    runner = make_runner(golden_project.copy(tmp_path / "clone"), tmp_path / "tools")
    (runner.project.root / ".git/info/exclude").write_text("reports/\n")
    job = runner.run("pre_merge.sh")
    assert job.code == 0, job.err
    of_job = runner.verdict("reports/pre-merge")
    direct = runner.project.golden("check", "--lane", "cpu", "--json").json()
    for verdict in (of_job, direct):
        for part in (verdict, *verdict["cases"]):
            del part["seconds"]
    assert of_job == direct
    files = {path.name for path in (runner.project.root / "reports/pre-merge").iterdir()}
    assert files == {"verdict.json", "verdict.md", "report.html", "junit.xml"}
    assert "golden cpu: PASS" in job.out


def test_every_case_is_checked_without_a_base(stubbed: Runner) -> None:
    job = stubbed.run("pre_merge.sh")
    assert job.code == 1, job.err
    (call,) = recorded(stubbed)
    assert call[:4] == ["check", "--lane", "cpu", "--json"]
    assert not {"--judge", "tiny_moe"} & set(call)
    assert call[-1] == f"GATE={stubbed.project.root}"


def test_the_bases_gate_judges_what_a_change_can_move(stubbed: Runner) -> None:
    stubbed.project.edit("grape", "grape ", "docs/model.md")
    stubbed.project.edit("def ", "def  ", "validation/cases/vpmoe/laws.py")
    stubbed.project.commit("a law")
    job = stubbed.run("pre_merge.sh", "HEAD~1", "reports/here")
    assert job.code == 1, job.err
    (call,) = recorded(stubbed)
    base = stubbed.project.git("rev-parse", "HEAD~1").strip()
    assert call[-4:-1] == ["laws", "--judge", base]
    assert call[-1] != f"GATE={stubbed.project.root}"
    assert stubbed.verdict("reports/here") == _VERDICT
    assert "1 of 10 records differ" in job.out


def test_new_cases_are_checked_by_their_own_goldens(stubbed: Runner) -> None:
    stubbed.project.edit('"tiny_dense",\n', '"tiny_other",\n', "validation/cases/vpmoe/__init__.py")
    stubbed.project.commit("another case")
    job = stubbed.run("pre_merge.sh", "HEAD~1")
    assert job.code == 1, job.err
    judged, own = recorded(stubbed)
    assert "--judge" in judged
    assert "tiny_other" not in judged
    assert own[-2:] == ["tiny_other", f"GATE={stubbed.project.root}"]


def test_a_base_that_does_not_exist_is_refused(stubbed: Runner) -> None:
    job = stubbed.run("pre_merge.sh", "no-such-revision")
    assert job.code == 2
    assert "no-such-revision" in job.err
    assert recorded(stubbed) == []


def test_gpu_minutes_are_left_beside_the_verdict(stubbed: Runner) -> None:
    answer(stubbed, "check", 0, {**_VERDICT, "lane": "h200-x2", "verdict": "PASS"})
    job = stubbed.run("gpu.sh", "h200-x2")
    assert job.code == 0, job.err
    kept = json.loads((stubbed.project.root / "reports/h200-x2/gpu-minutes.json").read_text())
    assert kept["total"] == pytest.approx(3.0 * 2 / 60)
    assert "h200-x2/plain_seed" in job.out


@pytest.mark.parametrize(
    ("codes", "expected"),
    [("0 4", 4), ("4 1", 1), ("1 3 0", 3), ("3 2", 2), ("0 137 2", 137), ("", 3), ("0 0", 0)],
)
def test_the_worst_exit_code_is_goldens_worst(codes: str, expected: int) -> None:
    words = f"source {CI}/jobs/common.sh; worst {codes}"
    done = subprocess.run(["bash", "-c", words], cwd=CI, capture_output=True, text=True, check=True)
    assert int(done.stdout) == expected
