"""The chaos suite: a small slice of the night, and what it counts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from benchmarks.chaos.attempt import LOST, WRONG, Attempt, Skipped
from benchmarks.chaos.repository import States
from benchmarks.chaos.suite import Kind, plan, run

SLICE = (
    "stop-accept:0",
    "stop-check:0",
    "two-checks:0",
    "numbers:0",
    "full-output:0",
    "edit-golden",
    "edit-run",
    "edit-verdict",
)


def test_a_slice_of_the_night(repository: Path, tmp_path: Path) -> None:
    report = tmp_path / "chaos.json"
    words = ["--edits", "2", "--seed", "1", "--only", *SLICE, "--json", str(report)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", *words],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert found["attempts"] == found["survived"] == found["planned"] == 11
    assert found["lost"] == found["wrong_verdict"] == found["hang"] == found["left_behind"] == 0
    assert set(found["kinds"]) == {name.partition(":")[0] for name in SLICE}


def good(attempt: Attempt) -> None:
    attempt.did = f"drew {attempt.random.random()}"


def bad(attempt: Attempt) -> None:
    attempt.blame(WRONG, f"drew {attempt.random.random()}")
    attempt.blame(LOST, "a golden")


def broken(attempt: Attempt) -> None:
    raise RuntimeError("no attempt")


def unable(attempt: Attempt) -> None:
    raise Skipped("no such machine")


KINDS = {"good": Kind(good, 3), "bad": Kind(bad), "unable": Kind(unable), "edit": Kind(good, 0)}


@pytest.fixture
def states(tmp_path: Path) -> States:
    return States(tmp_path)


def test_a_plan_spreads_every_kind_over_the_time() -> None:
    names = plan(KINDS, attempts=10, edits=4)
    assert names == plan(KINDS, attempts=10, edits=4)
    counted = {kind: sum(n.startswith(kind) for n in names) for kind in KINDS}
    assert counted == {"good": 6, "bad": 2, "unable": 2, "edit": 4}
    half = {name.partition(":")[0] for name in names[: len(names) // 2]}
    assert half == set(KINDS), "a suite that runs out of time has tried each kind"


def test_what_went_wrong_is_counted_once_and_told(states: States) -> None:
    told: list[str] = []
    report = run(plan(KINDS, 10, 4), KINDS, states, 7, float("inf"), told.append)
    found = report.to_json()
    assert (found["attempts"], found["survived"], found["skipped"]) == (12, 10, 2)
    assert (found["lost"], found["wrong_verdict"]) == (2, 0), "the worst of an attempt counts"
    assert report.failed
    assert report.skips == {"unable": "no such machine"}
    assert len(report.findings) == 4
    assert any("no such machine" in line for line in told)
    same = run(["bad:1"], KINDS, states, 7, float("inf"), told.append)
    assert same.findings[0] in report.findings, "an attempt alone draws what it drew in the suite"
    assert run(["bad:1"], KINDS, states, 8, float("inf"), told.append).findings != same.findings


def test_the_time_is_up_and_the_suite_is_broken(states: States) -> None:
    late = run(["good:0"], KINDS, states, 7, float("-inf"), print)
    assert late.to_json()["attempts"] == 0
    assert "the time was up after 0 of 1" in late.table()
    report = run(["broken:0"], {"broken": Kind(broken)}, states, 7, float("inf"), print)
    assert report.failed
    assert report.to_json()["suite_broken"] == 1
    assert "no attempt" in report.findings[0]["text"]


def test_the_words_of_a_report_are_json(states: States) -> None:
    report = run(["bad:0"], KINDS, states, Random(1).getrandbits(16), float("inf"), print)
    assert json.loads(json.dumps(report.to_json()))["findings"][0]["attempt"] == "bad:0"
