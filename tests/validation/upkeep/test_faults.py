"""The kill matrix: what is caught, where it is traced to, and what survives."""

import json
import math
from dataclasses import replace
from typing import Any

from validation.goldens import GoldenStore


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
    assert "the gate is blind to" in project.golden("check", "plain_seed").out


def test_a_no_op_control_with_an_effect_is_a_false_alarm(golden_project: Any) -> None:
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
    told = [line.replace('"kind": "table"', '"kind": "discrete"') for line in told]
    ledger.write_text("".join([state, *told]))
    resumed = project.golden("faults", "--resume", "--output", "out")
    assert resumed.code == whole.code == 0
    (table, curve) = json.loads((project.root / "out/matrix.json").read_text())["faults"]
    assert {fault["sightings"][0]["comparator"] for fault in (table, curve)} == {
        "discrete",
        "curve",
    }
    assert len(ledger.read_text().splitlines()) == 1 + len(results)
    # Unless asked to, nothing is believed; and nothing of other code.
    assert project.golden("faults", "--output", "out").code == 0
    matrix = (project.root / "out/matrix.json").read_text()
    assert '"comparator": "discrete"' not in matrix
    ledger.write_text("".join([state, *told]))
    project.edit("VOCABULARY, WIDTH", "VOCABULARY,  WIDTH", "plain_loop.py")
    assert project.golden("faults", "--resume", "--output", "out").code == 0
    matrix = (project.root / "out/matrix.json").read_text()
    assert '"comparator": "discrete"' not in matrix


def test_margins_are_shown_and_what_is_caught_plainly_is_listed(golden_project: Any) -> None:
    project = golden_project
    store = GoldenStore(project.root / "goldens")
    for name in ("plain_loss", "plain_seed"):
        golden = store.load("cpu", name)
        store.save(replace(golden, canaries=replace(golden.canaries, proofs={})))
    answer = project.golden("faults", "--jobs", "1", "--output", "reports")
    assert answer.code == 0, answer.err
    assert "plain_loss: 1 of 1 planted faults are proven canaries" in answer.err
    margins = {n: store.load("cpu", n).canaries.proofs for n in ("plain_loss", "plain_seed")}
    assert margins["plain_loss"]["wide_window"].margin == math.inf
    margin = margins["plain_seed"]["halved_gradient"].margin
    assert 10 < margin < math.inf
    document = json.loads((project.root / "reports/matrix.json").read_text())
    assert {f["id"]: f["margin"] for f in document["faults"]} == {
        "halved_gradient": margin,
        "wide_window": "inf",
    }
    page = (project.root / "reports/matrix.md").read_text()
    smallest = page.partition("## Smallest margins")[2]
    assert smallest.index("halved_gradient") < smallest.index("wide_window")
    assert f"| {margin:.3g} |" in page
    assert f"smallest margins: halved_gradient {margin:.3g}, wide_window inf" in answer.out
    # The lists are no reason to make the runs again.
    ledger = project.root / "runs/faults-cpu.jsonl"
    before = ledger.read_text()
    assert project.golden("faults", "--resume", "--json").json()["killed"] == 2
    assert ledger.read_text() == before
    assert project.golden("faults", "--jobs", "0").code == 2


def test_a_code_that_has_moved_proves_no_canary(golden_project: Any) -> None:
    project = golden_project
    store = GoldenStore(project.root / "goldens")
    before = store.load("cpu", "plain_seed")
    store.save(replace(before, canaries=replace(before.canaries, proofs={})))
    project.edit("lr=3e-3", "lr=4e-3")
    answer = project.golden("faults", "--only", "halved_gradient")
    assert "false alarm" in answer.out
    assert not store.load("cpu", "plain_seed").canaries.proofs


def test_accepting_proves_again_what_was_listed(golden_project: Any) -> None:
    project = golden_project
    store = GoldenStore(project.root / "goldens")
    before = store.load("cpu", "plain_seed")
    project.edit("lr=3e-3", "lr=4e-3")
    project.commit("a higher rate")
    words = ["--reason", "faster", "--expect", "plain_seed:*:any"]
    answer = project.golden("update", "plain_seed", *words)
    assert answer.code == 0, answer.err
    assert "plain_seed: 1 of 1 planted faults are proven canaries" in answer.out
    after = store.load("cpu", "plain_seed")
    assert set(after.canaries.proofs) == {"halved_gradient"}
    assert after.canaries.against != before.canaries.against
    project.commit("accept")
    # A fault that the new golden does not catch is listed no more.
    project.edit("parameter.grad.mul_(0.5)", "parameter.grad.mul_(1.0)", "plain_cases.py")
    project.edit("lr=4e-3", "lr=5e-3")
    project.commit("a fault without effect")
    answer = project.golden("update", "plain_seed", *words)
    assert answer.code == 0, answer.err
    assert "no canary is proven for cpu/plain_seed" in answer.out
    assert not store.load("cpu", "plain_seed").canaries.proofs
