"""`golden mutate`: killed by the cases that run the line, survivors told, the tree left alone."""

import json
from pathlib import Path
from typing import Any

from validation.coverage.document import read_measured
from validation.mutation.mutants import drawn
from validation.mutation.operators import edits
from validation.mutation.opinion import nearest_tests


def mutate(project: Any, *words: str) -> Any:
    answer = project.golden("mutate", "--json", *words)
    assert answer.code == 0, answer.err
    return answer.json()


def files_of(root: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not {"runs", ".git", "__pycache__"} & set(path.parts)
    }


def test_mutants_are_killed_by_the_cases_that_run_them_and_the_tree_is_not_touched(
    engine: Any,
) -> None:
    before = files_of(engine.root)
    found = mutate(engine, "--file", "engine/model.py", "--sample", "7")
    assert files_of(engine.root) == before
    assert found["covered"] == 7
    assert found["mutants"] > 7, "some stand on lines that no case runs"
    assert found["killed_with_tests"] is None
    assert (found["killed"], found["survivors"]) == (7, [])
    assert found["by_module"]["engine/model.py"]["killed"] == found["killed"]


def test_a_mutant_of_a_module_that_the_warm_parent_preloads_is_not_masked(engine: Any) -> None:
    """Its constant is read while the parent imports it: every case must see the mutant's."""
    from validation.cases import discover_cases
    from validation.goldens import GoldenStore
    from validation.mutation.trial import Judges

    root, store = engine.root, GoldenStore(engine.root / "goldens")
    cases = discover_cases(root)
    judges = Judges(
        root=root,
        lane="cpu",
        cases=cases,
        goldens={name: store.load("cpu", name) for name in cases},
        seconds={},
        environment={"OMP_NUM_THREADS": "1"},
        log=root / "runs" / "log.txt",
    )
    measured = read_measured(root / "goldens" / "cpu" / "coverage.json")
    mutants = list(drawn(root, ["engine/model.py", "engine/program.py"], measured, 1))
    (scale,) = (m for m in mutants if m.edit.text == b"6.0")
    killed = judges.kill(scale)
    assert killed.case in scale.cases
    assert "lm_loss" in killed.how
    (told,) = (
        m for m in mutants if m.name.endswith("program.py") and m.edit.operator == "returned"
    )
    assert told.cases == ["elsewhere"]
    assert judges.kill(told).killed, "a program that the case starts runs the mutant, too"


def test_survivors_are_shown_to_the_nearest_unit_tests(engine: Any) -> None:
    assert nearest_tests(engine.root, "engine/model.py") == ("tests/test_model.py",)
    assert nearest_tests(engine.root, "engine_cases.py") == ()
    engine.edit("if late:", "if late and step < 5:", "engine/model.py")
    assert engine.golden("coverage").code == 0
    found = mutate(engine, "--file", "engine/model.py", "--sample", "40", "--with-tests")
    told = {
        one["diff"].splitlines()[-2]: (one["operator"], one["line"], one["killed_by_tests"])
        for one in found["survivors"]
    }
    line = told.get("+    if late and step >= 5:", ("", 0, None))[1]
    assert told == {
        "+    if late and step >= 5:": ("operator", line, True),
        "+    if late and step <= 5:": ("boundary", line, False),
        "+    if late and step < 6:": ("constant", line, False),
    }
    assert line == 8
    assert found["killed_with_tests"] == found["killed"] + 1
    assert found["killed"] == found["covered"] - 3


def test_a_campaign_goes_on_where_it_was_interrupted(engine: Any) -> None:
    words = ("--file", "engine/model.py", "--sample", "4")
    first = mutate(engine, *words)
    ledger = engine.root / "runs" / "mutants-cpu.jsonl"
    lines = ledger.read_text().splitlines()
    kept = json.loads(lines[1])
    lines[1] = json.dumps({**kept, "case": "of the ledger", "how": "it says so"})
    ledger.write_text("\n".join([*lines[:2], ""]))
    answer = engine.golden("mutate", *words, "--resume")
    assert answer.code == 0
    assert "killed by of the ledger: it says so" in answer.err
    assert len(ledger.read_text().splitlines()) == len(lines)
    assert mutate(engine, *words, "--resume")["mutants"] == first["mutants"]
    engine.edit("SCALE = 3.0", "SCALE = 3.5", "engine/model.py")
    answer = engine.golden("mutate", *words, "--resume")
    assert (answer.code, "does not pass without a mutant" in answer.err) == (2, True)
    assert len(ledger.read_text().splitlines()) == 1, "of other code nothing counts"


def test_the_seed_decides_and_time_ends_it(engine: Any) -> None:
    root = engine.root
    measured = read_measured(root / "goldens" / "cpu" / "coverage.json")
    names = list(measured.files)

    def ids(seed: int) -> list[str]:
        return [mutant.id for mutant in drawn(root, names, measured, seed)]

    assert ids(1) == ids(1) != ids(2)
    assert sorted(ids(1)) == sorted(ids(2))
    assert len(set(ids(1))) == len(ids(1)) > len(edits((root / names[1]).read_bytes()))
    found = mutate(engine, "--sample", "30", "--minutes", "0.0001", "--jobs", "1")
    assert found["covered"] <= 1


def test_what_cannot_be_done_is_refused_by_name(engine: Any) -> None:
    for words, said in (
        (("--sample", "0"), "--sample 0"),
        (("--minutes", "-1"), "--minutes -1"),
        (("--file", "nowhere/*"), "nowhere/*"),
    ):
        answer = engine.golden("mutate", *words)
        assert (answer.code, said in answer.err) == (2, True), answer.err
    (engine.root / "goldens" / "cpu" / "coverage.json").unlink()
    for path in (engine.root / "runs").glob("*/coverage.json"):
        path.unlink()
    answer = engine.golden("mutate")
    assert (answer.code, "golden coverage --lane cpu" in answer.err) == (2, True)
