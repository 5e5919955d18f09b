"""`golden coverage` sees every process of a run, and what none of them runs."""

import json
import shutil
from pathlib import Path
from typing import Any

from validation.coverage.document import read_measured


def lines_of(project: Any, name: str) -> dict[str, int]:
    """Line numbers by the text of the line."""
    texts = (project.root / name).read_text().splitlines()
    return {text.strip(): number for number, text in enumerate(texts, start=1)}


def accepted(project: Any) -> Any:
    return read_measured(project.root / "goldens" / "cpu" / "coverage.json")


def test_what_no_case_runs_is_named_by_line_branch_and_function(engine: Any) -> None:
    answer = engine.golden("coverage", "alone", "--json")
    assert answer.code == 0, answer.err
    found = answer.json()
    line = lines_of(engine, "engine/model.py")
    assert found["files"]["engine/model.py"] == [
        [line["return 0.0"]] * 2,
        [line["return [1, 2]"]] * 2,
        [line["value += 1"], line["return value * 2"]],
    ]
    assert found["functions"]["missed"]["engine/model.py"] == ["table", "never"]
    assert found["branches"]["missed"]["engine/model.py"] == [
        [line["if late:"], line["return 0.0"]]
    ]
    assert found["covered"] < found["total"]
    assert found["by_case"]["alone"]["own"] == found["covered"]
    # A file that nothing imports is missed whole.
    assert found["files"]["engine/program.py"] == [[1, 5]]


def test_a_function_that_only_the_warm_parent_called_is_not_run_by_the_case(engine: Any) -> None:
    file = accepted(engine).files["engine/model.py"]
    line = lines_of(engine, "engine/model.py")
    assert file.lines[line["return [1, 2]"]] == frozenset()
    assert file.lines[line["SIZES = table()"]] == {"alone", "elsewhere", "ranks"}


def test_ranks_forks_and_programs_that_a_case_starts_are_merged(engine: Any) -> None:
    measured = accepted(engine)
    line = lines_of(engine, "engine/parts.py")
    by = measured.files["engine/parts.py"].lines
    assert by[line["return 0.25"]] == {"ranks"}, "the second rank"
    assert by[line["return 0.5"]] == {"ranks"}
    assert by[line['return "0.75"']] == {"elsewhere"}, "a fork that ends by os._exit"
    assert measured.files["engine/program.py"].missed == [], "a program"
    assert measured.cases["ranks"].own == 3, "a test and two returns"


def test_fields_that_no_case_varies_are_named(engine: Any) -> None:
    assert engine.golden("coverage", "alone", "--json").json()["defaults"] == {
        "nowhere": {"default": None, "value": None},
        "rate": {"default": 0.1, "value": 0.1},
        "steps": {"default": 1, "value": 2},
    }


def test_a_field_that_no_case_varies_has_its_reason(engine: Any) -> None:
    engine.edit(
        'fields="engine_cases:fields"',
        'fields="engine_cases:fields", unvaried={"rate": "one is enough"}',
        "engine_cases.py",
    )
    found = engine.golden("coverage", "alone", "--json").json()["defaults"]
    assert found["rate"] == {"default": 0.1, "value": 0.1, "reason": "one is enough"}
    assert "reason" not in found["steps"]
    said = engine.golden("coverage", "alone").out
    assert "rate: never varied: one is enough" in said
    assert "2 fields never varied, without a reason: nowhere, steps" in said
    engine.edit('"rate": "one', '"rats": "one', "engine_cases.py")
    refused = engine.golden("coverage", "alone")
    assert (refused.code, "GATED.unvaried" in refused.err, "'rats'" in refused.err) == (
        *(2, True, True),
    )


def test_cases_are_no_part_of_what_they_gate_and_an_omission_has_a_reason(engine: Any) -> None:
    engine.edit(
        'GATED = Gated(packages=["engine"]',
        'GATED = Gated(packages=["engine", "engine_cases"], omitted={'
        '"engine/parts.py": "elsewhere", "engine/model.py:never": "nobody calls it"}',
        "engine_cases.py",
    )
    found = engine.golden("coverage", "alone", "--json").json()
    assert set(found["files"]) == {"engine/__init__.py", "engine/model.py", "engine/program.py"}
    assert found["omitted"] == {
        "engine/parts.py": "elsewhere",
        "engine/model.py:never": "nobody calls it",
    }
    assert found["functions"]["missed"]["engine/model.py"] == ["table"]


def test_a_statement_is_left_out_with_its_body(engine: Any) -> None:
    engine.edit(
        'GATED = Gated(packages=["engine"]',
        'GATED = Gated(packages=["engine"], omitted={'
        '"engine/model.py:weight:if late:": "at night"}',
        "engine_cases.py",
    )
    found = engine.golden("coverage", "alone", "--json").json()
    line = lines_of(engine, "engine/model.py")
    missed = found["files"]["engine/model.py"]
    assert [line["return 0.0"]] * 2 not in missed
    assert [line["return [1, 2]"]] * 2 in missed, "the rest still counts"
    assert "engine/model.py" not in found["branches"]["missed"], "the way into it is left out, too"


def test_wrong_declarations_are_refused_by_name(engine: Any) -> None:
    omitting = 'packages=["engine"], omitted={"engine/model.py:%s": "x"}'
    for old, new, said in (
        ('packages=["engine"]', omitting % "gone", "no function or class 'gone'"),
        ('packages=["engine"]', omitting % "never:if gone:", "begins with the line 'if gone:'"),
        ('packages=["engine"]', 'packages=["motor"]', "'motor'"),
        ('packages=["engine"]', 'packages=["engine"], omitted={"engine/gone.py": "x"}', "gone.py"),
        (
            'fields="engine_cases:fields"',
            'fields="engine_cases:no"',
            "GATED.fields engine_cases:no",
        ),
    ):
        engine.git("checkout", "-q", ".")
        engine.edit(old, new, "engine_cases.py")
        answer = engine.golden("coverage", "alone")
        assert (answer.code, said in answer.err) == (2, True), answer.err


def test_without_a_declaration_the_packages_of_the_targets_count(engine: Any) -> None:
    engine.edit("GATED = Gated", "OTHER = Gated", "engine_cases.py")
    found = engine.golden("coverage", "alone", "--json").json()
    assert set(found["files"]) == set(accepted(engine).files)
    assert found["defaults"] == {}


def test_a_case_that_fails_covers_nothing_and_a_part_is_not_accepted(engine: Any) -> None:
    answer = engine.golden("coverage", "alone", "--accept", "--reason", "in part")
    assert (answer.code, "name no case" in answer.err) == (2, True)
    assert engine.golden("coverage", "--accept").code == 2
    engine.edit("return SCALE / (step + 1)", "raise ValueError(SCALE)", "engine/model.py")
    answer = engine.golden("coverage", "--accept", "--reason", "dirty")
    assert (answer.code, "engine/model.py" in answer.err) == (2, True)
    answer = engine.golden("coverage", "alone")
    assert (answer.code, "ValueError: 3.0" in answer.err) == (2, True), answer.err


def test_an_acceptance_is_on_file_and_moves_no_golden(engine: Any) -> None:
    audits = [json.loads(p.read_text()) for p in (engine.root / "goldens/audit").glob("*.json")]
    (entry,) = [audit for audit in audits if "coverage" in audit]
    assert entry["reason"] == "the first figure"
    assert entry["author"] == "Ada <ada@example.org>"
    lines = accepted(engine).lines
    assert entry["coverage"] == [
        {"lane": "cpu", "before": None, "after": {"covered": lines.covered, "total": lines.total}}
    ]
    answer = engine.golden("check", "--json")
    assert {case["identical"] == case["compared"] for case in answer.json()["cases"]} == {True}


def test_measuring_moves_no_number(engine: Any) -> None:
    """The goldens were recorded without coverage.py; a case under it says the same."""
    from validation.cases import discover_cases
    from validation.compare import compare
    from validation.goldens import GoldenStore
    from validation.running import measured
    from validation.running.execution import RunOptions, run_case
    from validation.running.instruments import instrumented

    files = engine.root / "files.json"
    files.write_text(json.dumps([str(engine.root / "engine" / "model.py")]))
    look = instrumented(Path(measured.__file__), **{measured.FILES: str(files)})
    folder = engine.root / "runs" / "data"
    folder.mkdir()
    case = discover_cases(engine.root)["alone"]
    options = RunOptions(lane="cpu", environment=look, coverage=folder)
    trace = run_case(case, options, engine.root, engine.root / "runs" / "log.txt")
    golden = GoldenStore(engine.root / "goldens").load("cpu", "alone")
    comparison = compare(golden.trace, trace, exact=True)
    assert comparison.identical == comparison.compared > 0
    assert any(folder.iterdir())


def test_the_report_of_a_check_shows_it(engine: Any, tmp_path: Path) -> None:
    assert engine.golden("check", "alone", "--report", str(tmp_path)).code == 0
    page = (tmp_path / "report.html").read_text()
    assert "What no case runs" in page
    assert "engine/model.py" in page
    shutil.rmtree(engine.root / "runs")
    (engine.root / "goldens/cpu/coverage.json").unlink()
    assert engine.golden("check", "alone", "--report", str(tmp_path)).code == 0
    assert "What no case runs" not in (tmp_path / "report.html").read_text()
