"""`golden health` fails on a fall of coverage, and a judged check names what it cannot see."""

import json
import shutil
from typing import Any

from validation.coverage.document import read_measured


def finds(project: Any) -> list[str]:
    """What `golden health` says of coverage."""
    answer = project.golden("health")
    assert answer.code == 1, "goldens are not calibrated, too"
    return [line for line in answer.out.splitlines() if line.startswith("coverage: cpu: ")]


def line_of(project: Any, name: str, text: str) -> int:
    lines = [line.strip() for line in (project.root / name).read_text().splitlines()]
    return lines.index(text) + 1


def forget_runs(project: Any) -> None:
    """As in another clone: the accepted figure alone is known."""
    shutil.rmtree(project.root / "runs")


def test_a_lane_as_it_was_measured_is_healthy_with_and_without_the_run(engine: Any) -> None:
    assert finds(engine) == []
    forget_runs(engine)
    assert finds(engine) == []


def test_the_lines_of_a_case_that_is_gone_are_a_fall(engine: Any) -> None:
    shutil.rmtree(engine.root / "goldens" / "cpu" / "ranks")
    engine.edit(', case("ranks", processes=2, ranks=True)', "", "engine_cases.py")
    forget_runs(engine)
    (line,) = finds(engine)
    first = line_of(engine, "engine/parts.py", "if rank == 1:")
    assert f"engine/parts.py: {first}-{first + 2}" in line
    assert "golden coverage --lane cpu --accept" in line


def test_a_measurement_of_this_very_code_decides_where_there_is_one(engine: Any) -> None:
    engine.edit(
        "if late:", "if late and step > 3:\n        step += 1\n    if late:", "engine/model.py"
    )
    engine.commit("A branch that no case takes")
    assert finds(engine) == [], "one line is no tenth of them"
    assert engine.golden("coverage").code == 0
    (line,) = finds(engine)
    assert "the cases run" in line
    accepted = engine.golden("coverage", "--accept", "--reason", "an unused branch")
    assert accepted.code == 0, accepted.err
    assert finds(engine) == []


def test_much_new_code_asks_for_a_measurement(engine: Any) -> None:
    new = "".join(f"X{n} = {n}\n" for n in range(40))
    (engine.root / "engine" / "model.py").open("a").write(new)
    (line,) = finds(engine)
    assert "40 of" in line


def test_a_damaged_file_is_told_of(engine: Any) -> None:
    path = engine.root / "goldens" / "cpu" / "coverage.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "covered": document["total"]}))
    (line,) = finds(engine)
    assert "coverage.json: its figure is not" in line
    path.write_text("{")
    assert len(finds(engine)) == 1
    assert engine.golden("check", "alone").code == 0, "it decides no verdict"


def judged(project: Any, *cases: str) -> str:
    answer = project.golden("check", *cases, "--judge", "HEAD", "--json")
    return str(answer.json()["message"])


def test_a_change_of_lines_that_no_selected_case_runs_is_named(engine: Any) -> None:
    forget_runs(engine)
    engine.edit("value += 1", "value += 2", "engine/model.py")
    message = judged(engine, "alone")
    assert "warning: the change touches lines that no selected case runs" in message
    assert f"engine/model.py: {line_of(engine, 'engine/model.py', 'value += 2')}" in message
    engine.git("checkout", "-q", ".")
    engine.edit("return 0.25", "return 0.125 * 2", "engine/parts.py")
    line = line_of(engine, "engine/parts.py", "return 0.125 * 2")
    assert f"engine/parts.py: {line}" in judged(engine, "alone"), "another case runs it"
    assert "warning" not in judged(engine, "ranks")


def test_lines_that_are_new_go_by_what_stands_before_them(engine: Any) -> None:
    forget_runs(engine)
    engine.edit("    return SCALE", "    step = step + 0\n    return SCALE", "engine/model.py")
    assert "warning" not in judged(engine, "alone")
    engine.edit(
        "    return value * 2", "    value = +value\n    return value * 2", "engine/model.py"
    )
    line = line_of(engine, "engine/model.py", "value = +value")
    assert f"engine/model.py: {line} (not measured since it was" in judged(engine, "alone")
    (engine.root / "engine" / "new.py").write_text('"""New."""\n\nX = 1\n')
    assert "engine/new.py: 3" in judged(engine, "alone")


def test_a_line_within_a_statement_is_its_statements(engine: Any) -> None:
    engine.edit(
        "    value += 1", "    value += max(\n        1,\n        0,\n    )", "engine/model.py"
    )
    engine.edit("SCALE = 3.0", "SCALE = max(\n    3.0,\n    1.0,\n)", "engine/model.py")
    engine.commit("On several lines")
    assert engine.golden("coverage").code == 0
    forget = engine.root / "goldens" / "cpu" / "coverage.json"
    forget.write_bytes(max(engine.root.glob("runs/*/coverage.json")).read_bytes())
    engine.commit("Its measurement")
    forget_runs(engine)
    engine.edit("        0,\n    )", "        0,\n        2,\n    )", "engine/model.py")
    line = line_of(engine, "engine/model.py", "value += max(")
    assert f"engine/model.py: {line} (not measured" in judged(engine, "alone")
    engine.git("checkout", "-q", ".")
    engine.edit("    1.0,\n)", "    1.0,\n    2.0,\n)", "engine/model.py")
    assert "warning" not in judged(engine, "alone")


def test_a_run_statement_that_is_taken_away_is_no_blind_spot_and_another_is(engine: Any) -> None:
    forget_runs(engine)
    engine.edit("    value += 1\n", "", "engine/model.py")
    assert f"engine/model.py: {line_of(engine, 'engine/model.py', 'def never(')}" in judged(
        engine, "alone"
    )
    engine.git("checkout", "-q", ".")
    engine.edit("SIZES = table()\n", "", "engine/model.py")
    assert "warning" not in judged(engine, "alone")


def test_a_measurement_of_the_change_knows_better(engine: Any) -> None:
    engine.edit(
        "    return SCALE",
        "    if step > 99:\n        step = 1\n    return SCALE",
        "engine/model.py",
    )
    assert engine.golden("coverage").code == 0
    line = line_of(engine, "engine/model.py", "step = 1")
    assert f"engine/model.py: {line}\n" in judged(engine, "alone"), "not the test before it"


def test_a_document_reads_back_as_it_was_written(engine: Any) -> None:
    measured = read_measured(engine.root / "goldens" / "cpu" / "coverage.json")
    again = engine.root / "runs" / "again.json"
    again.write_text(json.dumps(measured.document()))
    assert read_measured(again) == measured
