"""`golden health` and `golden explain`: what no check would tell, and what a check has found."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from validation.cases import Case, Fault
from validation.compare import Tolerances
from validation.config import Lane
from validation.config.gaps import parse_gaps
from validation.gate.health import Finding, examine, known_gaps
from validation.goldens import Golden, GoldenStore
from validation.goldens.audit_log import AuditLog
from validation.running.source import git

from .traces import random_trace, tolerances_of


@pytest.fixture
def case() -> Case:
    return Case(name="tiny", description="a case", lanes=["cpu"], target="a:b")


@pytest.fixture
def store(tmp_path: Path, case: Case, measured_as: Callable[..., Golden]) -> GoldenStore:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "user.name", "Ada")
    store = GoldenStore(tmp_path / "goldens")
    trace = random_trace(1)
    accepted = {"time": "2026", "author": "ada", "reason": "first"}
    golden = Golden(lane="cpu", trace=trace, case_digest=case.digest, accepted=accepted)
    AuditLog(store.folder).write({**accepted, "goldens": [{"lane": "cpu", "case": "tiny"}]})
    measured_as(store, golden, tolerances_of(trace))
    return store


def kinds(store: GoldenStore, *cases: Case, faults: tuple[Fault, ...] = ()) -> list[str]:
    found = examine(
        store.folder.parent,
        {c.name: c for c in cases},
        {fault.id: fault for fault in faults},
        {"cpu": Lane(name="cpu"), "h200": Lane(name="h200", gpus=1)},
    )
    return [finding.kind for finding in found]


def test_a_healthy_store(store: GoldenStore, case: Case) -> None:
    assert kinds(store, case) == []


def test_what_no_check_would_tell(store: GoldenStore, case: Case) -> None:
    folder = store.path("cpu", "tiny")
    assert kinds(store) == ["orphaned"]
    assert kinds(store, replace(case, lanes=["h200"])) == ["unreachable", "never-run"]
    assert kinds(store, replace(case, settings={"steps": 3})) == ["stale"]
    assert kinds(store, case, replace(case, name="other")) == ["never-run"]
    (folder / "curves.0123456789ab.json").write_text("{}")
    assert kinds(store, case) == ["leftover"]
    (folder / "curves.0123456789ab.json").unlink()
    (store.folder / "tpu").mkdir()
    assert kinds(store, case) == ["unreachable"]
    (store.folder / "tpu").rmdir()
    shutil.rmtree(store.folder / "audit")
    assert kinds(store, case) == ["underived", "unreachable"]
    (folder / "curves.json").write_text("{")
    assert kinds(store, case) == ["damaged"]


def test_what_a_killed_command_left_is_named(store: GoldenStore, case: Case) -> None:
    for name in ("audit/.b.json.0a1b2c3d", "cpu/tiny/.golden.json.x_y_z_00"):
        (store.folder / name).write_text("{")
    assert kinds(store, case) == ["leftover", "leftover"]


@pytest.mark.parametrize("goldens", [7, -1.5, True, "cpu/tiny", {"lane": "cpu"}, None])
def test_a_strange_audit_file_is_named(store: GoldenStore, case: Case, goldens: Any) -> None:
    (store.folder / "audit" / "a.json").write_text(json.dumps({"goldens": goldens}))
    assert kinds(store, case) == ["audit"]


def test_records_that_nothing_checks(
    store: GoldenStore, case: Case, measured_as: Callable[..., Golden]
) -> None:
    golden = store.load("cpu", "tiny")
    wide = {**golden.tolerances.classes, "curve:lm_loss": {1: 2.0}}
    measured_as(store, golden, Tolerances(wide))
    assert kinds(store, case) == ["unchecked"]
    del wide["curve:lm_loss"]
    measured_as(store, golden, Tolerances(wide))
    assert kinds(store, case) == ["uncalibrated"]
    store.save(replace(golden, tolerances=Tolerances(), calibration={}))
    assert kinds(store, case) == ["uncalibrated"]
    fault = Fault(id="f", category="c", component="c", imitates="", plant="a:b", case="gone")
    store.save(golden)
    assert kinds(store, case, faults=(fault,)) == ["unreachable"]


def test_the_commands(golden_project: Any) -> None:
    project = golden_project
    answer = project.golden("health")
    assert (answer.code, answer.out) == (0, "healthy\n")
    assert project.golden("explain").code == 2, "there is no run yet"
    (project.root / "goldens" / "quarantine.json").write_text("{}")
    assert project.golden("health").code == 1
    (project.root / "goldens" / "quarantine.json").unlink()
    declared = """
[[tool.golden.gaps]]
kind = "never-run"
subjects = ["cpu/plain_loss"]
reason = "it is to be recorded elsewhere"
owner = "ada"
expires = %s
"""
    pyproject = project.root / "pyproject.toml"
    whole = pyproject.read_text()
    pyproject.write_text(whole + declared % (date.today() + timedelta(days=9)))
    shutil.move(project.root / "goldens" / "cpu" / "plain_loss", project.root / "elsewhere")
    answer = project.golden("health")
    assert answer.code == 0, answer.out
    assert "it is to be recorded elsewhere" in answer.out
    assert answer.out.endswith("healthy, but for 1 known gap(s)\n")
    pyproject.write_text(whole + declared % '"soon"')
    assert project.golden("health").code == 2
    pyproject.write_text(whole)
    shutil.move(project.root / "elsewhere", project.root / "goldens" / "cpu" / "plain_loss")
    project.edit("WIDTH**-0.5", "WIDTH**-0.5 * 1.01")
    assert project.golden("check").code == 1
    for words in (["explain"], ["explain", str(project.latest_run())]):
        answer = project.golden(*words)
        assert answer.code == 0, answer.err
        assert "1.out" in answer.out
        assert len(answer.out.splitlines()) < 50


TODAY = date(2026, 1, 5)


def gap(**changes: Any) -> dict[str, Any]:
    """A gap as a repository declares it."""
    return {
        "kind": "uncalibrated",
        "subjects": ["h200/tiny"],
        "reason": "its card comes in March",
        "owner": "ada",
        "expires": date(2026, 3, 31),
        **changes,
    }


def test_a_known_gap_is_no_finding_until_it_expires() -> None:
    found = [
        Finding("uncalibrated", "h200/tiny", "was never calibrated"),
        Finding("uncalibrated", "h200/tiny/another-card", "was never calibrated"),
        Finding("damaged", "h200/tiny", "is damaged"),
    ]
    gaps = parse_gaps([gap()])
    left, known = known_gaps(found, gaps, TODAY)
    assert left == found[1:], "a gap hides no more than it names"
    assert known == [(found[0], gaps[0])]
    for today, text in ((date(2026, 4, 1), "expired"), (date(2025, 9, 1), "180 days ahead")):
        left, known = known_gaps(found, gaps, today)
        assert known == []
        assert found[0] in left
        assert [text in finding.text for finding in left if finding.kind == "gap"] == [True]
    left, _ = known_gaps(found[1:], gaps, TODAY)
    assert left[-1].kind == "gap"
    assert "delete it" in left[-1].text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "a list of tables"),
        ([gap(kind="damaged")], "gap 1: kind is one of"),
        ([gap(), gap(kind="unchecked", reason=" ")], "gap 2: reason"),
        ([gap(owner=3)], "owner"),
        ([gap(subjects=[])], "subjects"),
        ([gap(subjects="h200/tiny")], "subjects"),
        ([gap(expires="2026-03-31")], "expires is a day"),
        ([gap(expires=datetime(2026, 3, 31))], "expires is a day"),
        ([gap(until=1)], "until"),
        ([{"kind": "unchecked"}], "expires"),
        ([gap(), gap()], "declared twice"),
    ],
)
def test_a_gap_says_why_who_and_until_when(value: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse_gaps(value)
