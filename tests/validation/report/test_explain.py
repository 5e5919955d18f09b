"""An explanation fits a screen and names the first divergence, what came before, what followed."""

import re
from pathlib import Path

import pytest

from validation.compare import Tolerances, compare
from validation.files import DamagedFileError, encode_json
from validation.gate.verdict import CaseResult, CheckResult, Verdict
from validation.report import write_reports
from validation.report.explain import environment_changes, render_explanation
from validation.trace import CurveKey, Event, Key, Sketch, Trace

MODULES = [f"decoder.layers.{i}.mlp" for i in range(40)]


def trace(*, broken_from: int | None = None) -> Trace:
    def value(step: int, index: int) -> Sketch:
        scale = 1.5 if broken_from is not None and step == 3 and index >= broken_from else 1.0
        return Sketch("float32", (4,), scale, scale, scale, f"{scale}", (scale,) * 24)

    return Trace(
        case="moe",
        provenance={"environment": {"torch": "2.10.0", "threads": 2}},
        events=[
            Event(Key(step, 0, "forward", module, "output"), value(step, index))
            for step in (1, 3)
            for index, module in enumerate(MODULES)
        ],
        curves={CurveKey("lm_loss"): {1: 3.0, 3: 3.0 if broken_from is None else 2.0}},
        curve_phases={CurveKey("lm_loss"): "forward"},
    )


def folder(tmp_path: Path, *, broken_from: int | None, **more: object) -> Path:
    comparison = compare(
        trace(),
        trace(broken_from=broken_from),
        Tolerances({"forward:decoder.layers.#.mlp.output": {1: 0.01}}),
    )
    first = comparison.divergences[0] if comparison.divergences else None
    case = CaseResult(
        "moe",
        Verdict.FAIL if first else Verdict.PASS,
        comparison.compared,
        comparison.identical,
        first_divergence=first,
        comparison=comparison,
        decoded={"golden": ("the ", "cat", " sat"), "actual": ("the ", "dog", " sat")},
    )
    broken = CaseResult("resume", Verdict.INVALID, message="goldens/cpu/resume: damaged\nmore")
    cases = [broken, case] if more.get("broken") else [case]
    verdict = Verdict.INVALID if more.get("broken") else case.verdict
    result = CheckResult(verdict, "cpu", 1.0, {"torch": "2.11.0", "threads": 2}, None, cases)
    write_reports(result, tmp_path)
    (tmp_path / "verdict.json").write_bytes(encode_json(result.to_json()))
    return tmp_path


def test_a_failure_in_one_screen(tmp_path: Path) -> None:
    text = render_explanation(folder(tmp_path, broken_from=7))
    assert len(text.splitlines()) <= 40
    assert "first divergence: step 3, micro-batch 0, phase forward, rank 0" in text
    assert "module    decoder.layers.7.mlp" in text
    assert re.search(r"\d times the tolerance 0.01", text)
    assert "  step 3 forward   decoder.layers.6.mlp output: bit-identical" in text
    assert "> step 3 forward   decoder.layers.7.mlp output: outside tolerance, " in text
    assert "spread: 33 events in 33 modules beyond tolerance of 80" in text
    assert "curves: lm_loss (step 3)" in text
    assert "torch: 2.10.0 -> 2.11.0" in text
    assert "threads" not in text
    assert "the [dog] sat" in text
    assert f"golden diff moe {tmp_path}\n" in text
    assert "golden bisect GOOD HEAD moe" in text


def test_the_next_command_knows_what_a_run_was_held_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder(tmp_path / "runs" / "a run", broken_from=7)
    monkeypatch.chdir(tmp_path)
    assert "golden diff moe 'runs/a run'\n" in render_explanation(run)
    (run / "base" / "moe").mkdir(parents=True)
    assert "golden diff moe 'runs/a run/base' 'runs/a run'\n" in render_explanation(run)


def test_the_first_event_of_all_can_be_the_divergence(tmp_path: Path) -> None:
    assert "> step 3 forward   decoder.layers.0.mlp" in render_explanation(
        folder(tmp_path, broken_from=0)
    )


def test_a_movement_is_explained_before_what_could_not_be_compared(tmp_path: Path) -> None:
    text = render_explanation(folder(tmp_path, broken_from=7, broken=True))
    assert text.index("case moe: FAIL") < text.index("resume INVALID goldens/cpu/resume: damaged")
    assert text.startswith("INVALID")


def test_a_pass_says_what_was_identical(tmp_path: Path) -> None:
    text = render_explanation(folder(tmp_path, broken_from=None))
    assert text.startswith("PASS")
    assert "82 (100 %) bit-identical" in text


def test_without_evidence_the_verdict_still_explains(tmp_path: Path) -> None:
    run = folder(tmp_path, broken_from=7)
    (run / "evidence" / "moe.json").unlink()
    assert "module    decoder.layers.7.mlp" in render_explanation(run)


@pytest.mark.parametrize("name", ["verdict.json", "evidence/moe.json"])
def test_a_damaged_folder_is_named(tmp_path: Path, name: str) -> None:
    run = folder(tmp_path, broken_from=7)
    (run / name).write_text("{")
    with pytest.raises(DamagedFileError, match=Path(name).name):
        render_explanation(run)


def test_environment_changes_need_a_recorded_environment() -> None:
    assert environment_changes({}, {"torch": "1"}) == []
    assert environment_changes({"environment.torch": "1"}, {"torch": "2", "gpu": {"n": 1}}) == [
        ("torch", "1", "2"),
        ("gpu.n", "-", "1"),
    ]
