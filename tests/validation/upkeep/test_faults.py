"""The kill matrix: what is caught, where it is traced to, and what survives."""

import json
from typing import Any


def test_every_planted_bug_is_killed_and_harmless_changes_pass(golden_project: Any) -> None:
    answer = golden_project.golden("faults", "--json")
    matrix = answer.json()
    assert answer.code == 0, (matrix, answer.err)
    assert (matrix["killed"], matrix["total"], matrix["false_alarms"]) == (2, 2, 0)
    found = {fault["id"]: fault for fault in matrix["faults"]}
    assert set(found["wide_window"]) == {
        "id", "category", "component", "killed", "case", "step", "localised", "localised_right",
    }  # fmt: skip
    assert found["wide_window"]["localised"] == "window.table"
    assert found["halved_gradient"]["case"] == "plain_seed"
    assert found["halved_gradient"]["localised"] == "training.grad_norm"
    assert found["halved_gradient"]["localised_right"]
    assert {entry["id"]: entry["passed"] for entry in matrix["benign"]} == {
        "einsum_attention": True,
        "twin/wide_window": True,
        "unchanged/plain_loss": True,
        "unchanged/plain_seed": True,
    }


def test_survivors_come_first_and_fail(golden_project: Any) -> None:
    project = golden_project
    project.edit("plain_loop.WINDOW + 1", "plain_loop.WINDOW + 0", "plain_cases.py")
    answer = project.golden("faults", "--only", "wide_window", "--only", "halved_gradient")
    assert answer.code == 1
    assert "SURVIVED" in answer.out.splitlines()[1]
    assert "1 of 2 bugs killed" in answer.out
    assert project.golden("faults", "--only", "no_such_fault").code == 2


def test_a_planted_bug_that_crashes_is_no_kill(golden_project: Any) -> None:
    project = golden_project
    project.edit("parameter.grad.mul_(0.5)", "raise RuntimeError", "plain_cases.py")
    answer = project.golden("faults", "--only", "halved_gradient", "--json")
    assert answer.code == 1
    assert answer.json()["killed"] == 0


def test_a_canary_that_has_no_effect_makes_the_check_invalid(golden_project: Any) -> None:
    project = golden_project
    project.edit("plain_loop.WINDOW + 1", "plain_loop.WINDOW + 0", "plain_cases.py")
    project.edit("parameter.grad.mul_(0.5)", "parameter.grad.mul_(1.0)", "plain_cases.py")
    answer = project.golden("check", "plain_seed", "--json")
    assert answer.code == 3
    assert answer.json()["cases"][0]["verdict"] == "PASS"
    assert answer.json()["canary"]["caught"] is False


def test_a_twin_with_an_effect_is_a_false_alarm(golden_project: Any) -> None:
    project = golden_project
    project.edit(
        '"WINDOW", plain_loop.WINDOW)', '"WINDOW", plain_loop.WINDOW - 1)', "plain_cases.py"
    )
    answer = project.golden("faults", "--only", "wide_window", "--json")
    assert answer.code == 1
    assert answer.json()["killed"] == 1
    assert [e["id"] for e in answer.json()["benign"] if not e["passed"]] == ["twin/wide_window"]


def test_an_equivalent_is_left_out_only_if_its_trace_is_equal(golden_project: Any) -> None:
    project = golden_project
    project.edit("plain_loop.WINDOW + 1", "plain_loop.WINDOW + 0", "plain_cases.py")
    claim = 'canary_steps=2,\n        equivalent="nothing is patched",'
    project.edit("canary_steps=2,", claim, "plain_cases.py")
    answer = project.golden("faults", "--only", "wide_window", "--output", "out")
    assert answer.code == 0, answer.out
    assert "equivalent" in answer.out.splitlines()[1]
    assert "0 of 1 bugs killed, 0 of 0 without proved equivalents" in answer.out
    page = (project.root / "out/matrix.md").read_text()
    assert "`wide_window`: nothing is patched" in page
    assert (project.root / "out/matrix.html").exists()
    # A claim that is not true counts for nothing.
    project.edit("plain_loop.WINDOW + 0", "plain_loop.WINDOW + 1", "plain_cases.py")
    answer = project.golden("faults", "--only", "wide_window")
    assert answer.code == 0
    assert "killed" in answer.out.splitlines()[1]


def test_the_matrix_tries_every_case_in_full(golden_project: Any) -> None:
    answer = golden_project.golden("faults", "--only", "wide_window", "--full", "--output", "out")
    assert answer.code == 0
    matrix = json.loads((golden_project.root / "out/matrix.json").read_text())
    (fault,) = matrix["faults"]
    assert [s["case"] for s in fault["sightings"]] == ["plain_loss", "plain_seed"]
    assert fault["sightings"][0]["comparator"] == "table"
    assert fault["differs_bitwise"] is True


def test_finished_runs_are_not_made_again(golden_project: Any) -> None:
    project = golden_project
    whole = project.golden("faults", "--json")
    ledger = project.root / "runs/faults-cpu.jsonl"
    state, *results = ledger.read_text().splitlines(keepends=True)
    # Cut short: one result is missing, and one says what no run would.
    told = [line for line in results if "halved" not in line]
    told = [line.replace('"comparator": "table"', '"comparator": "oracle"') for line in told]
    ledger.write_text("".join([state, *told]))
    resumed = project.golden("faults", "--resume", "--output", "out")
    assert resumed.code == whole.code == 0
    (table, curve) = json.loads((project.root / "out/matrix.json").read_text())["faults"]
    assert {fault["sightings"][0]["comparator"] for fault in (table, curve)} == {"oracle", "curve"}
    assert len(ledger.read_text().splitlines()) == 1 + len(results)
    # Unless asked to, nothing is believed; and nothing of other code.
    assert project.golden("faults", "--output", "out").code == 0
    assert "oracle" not in (project.root / "out/matrix.json").read_text()
    ledger.write_text("".join([state, *told]))
    project.edit("VOCABULARY, WIDTH", "VOCABULARY,  WIDTH", "plain_loop.py")
    assert project.golden("faults", "--resume", "--output", "out").code == 0
    assert "oracle" not in (project.root / "out/matrix.json").read_text()
