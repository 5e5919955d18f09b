"""`golden health` and `golden explain`: what no check would tell, and what a check has found."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from validation.cases import Case, Fault
from validation.compare import Tolerances
from validation.goldens import Golden, GoldenStore
from validation.goldens.health import examine

from .traces import random_trace, tolerances_of


@pytest.fixture
def case() -> Case:
    return Case(name="tiny", description="a case", lanes=["cpu"], target="a:b")


@pytest.fixture
def store(tmp_path: Path, case: Case) -> GoldenStore:
    store = GoldenStore(tmp_path / "goldens")
    trace = random_trace(1)
    accepted = {"time": "now", "author": "ada", "reason": "first"}
    store.save(
        Golden(
            lane="cpu",
            trace=trace,
            case_digest=case.digest,
            accepted=accepted,
            tolerances=tolerances_of(trace),
        )
    )
    (store.folder / "audit").mkdir()
    entry = {**accepted, "goldens": [{"lane": "cpu", "case": "tiny"}]}
    (store.folder / "audit" / "a.json").write_text(json.dumps(entry))
    return store


def kinds(store: GoldenStore, *cases: Case, faults: tuple[Fault, ...] = ()) -> list[str]:
    found = examine(
        store.folder.parent,
        {c.name: c for c in cases},
        {fault.id: fault for fault in faults},
        ("cpu", "h200"),
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
    assert kinds(store, case) == ["unreachable"]
    next(folder.glob("curves.*")).write_text("{")
    assert kinds(store, case) == ["damaged"]


def test_records_that_nothing_checks(store: GoldenStore, case: Case) -> None:
    golden = store.load("cpu", "tiny")
    wide = {**golden.tolerances.classes, "curve:lm_loss": {1: 2.0}}
    store.save(replace(golden, tolerances=Tolerances(wide)))
    assert kinds(store, case) == ["unchecked"]
    del wide["curve:lm_loss"]
    store.save(replace(golden, tolerances=Tolerances(wide)))
    assert kinds(store, case) == ["uncalibrated"]
    store.save(replace(golden, tolerances=Tolerances()))
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
    project.edit("WIDTH**-0.5", "WIDTH**-0.5 * 1.01")
    assert project.golden("check").code == 1
    for words in (["explain"], ["explain", str(project.latest_run())]):
        answer = project.golden(*words)
        assert answer.code == 0, answer.err
        assert "1.out" in answer.out
        assert len(answer.out.splitlines()) < 50
