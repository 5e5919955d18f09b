"""`golden update` and `golden check` on a project whose records have awkward names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from validation.goldens import GoldenStore
from validation.trace import CurveKey, RecordKind, TableKey

RECORDS = """recorder.curve(step, "lm_loss", loss)
        recorder.curve(step, "pass@1", loss)
        recorder.curve(step, "table", loss)
        recorder.discrete("training", {"law": "of the land", "holds": False}, step=step)
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_any_name_is_an_ordinary_one(plain_project: Any, ranks: int) -> None:
    project, last = plain_project, ranks - 1
    cases = "plain_cases.py"
    project.edit('recorder.curve(step, "lm_loss", loss)\n', RECORDS, cases)
    project.edit('recorder.table("window",', 'recorder.table("pass@1",', cases)
    project.edit('"seed": 7},', f'"seed": 7}}, processes={ranks},', cases)
    project.commit("awkward names")
    assert project.golden("update", "plain_seed", "--reason", "the first").code == 0
    project.commit("a golden")
    again = project.golden("check", "plain_seed", "--json")
    assert (again.code, again.json()["cases"][0]["verdict"]) == (0, "PASS"), again.err
    trace = GoldenStore(project.root / "goldens").load("cpu", "plain_seed").trace
    assert {CurveKey("pass@1", rank) for rank in range(ranks)} <= trace.curves.keys()
    assert set(trace.tables) == {TableKey("pass@1", rank) for rank in range(ranks)}
    rules = [event for event in trace.events if event.key.module == "training"]
    assert {event.kind for event in rules} == {RecordKind.DISCRETE}

    moved = f'"pass@1", loss * (2 if recorder.rank == {last} else 1)'
    project.edit('"pass@1", loss', moved, cases)
    project.commit("twice as good")
    failed = project.golden("check", "plain_seed", "--json")
    assert failed.code == 1, failed.err
    first = failed.json()["cases"][0]["first_divergence"]
    place = [first[name] for name in ("module", "tensor", "rank")]
    assert place == ["training", "pass@1", last]
    run = project.latest_run()
    evidence = json.loads((run / "evidence/plain_seed.json").read_text())
    assert evidence["first_kind"] == "curve"
    name = "pass@1" if ranks == 1 else "pass@1@1"
    refused = project.golden("update", "plain_seed", "--from", str(run), "--reason", "better")
    assert refused.code == 2
    assert f"plain_seed:{name}:up" in refused.err
    words = ("--reason", "better", "--expect", f"plain_seed:{name}:up")
    accepted = project.golden("update", "plain_seed", "--from", str(run), *words)
    assert accepted.code == 0, accepted.err
    after = GoldenStore(project.root / "goldens").load("cpu", "plain_seed").trace
    key = CurveKey("pass@1", last)
    assert after.curves[key] == {step: 2 * value for step, value in trace.curves[key].items()}
