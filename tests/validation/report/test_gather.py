"""Evidence is what the comparator saw, and survives the run folder unchanged."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from validation.compare import Tolerances, compare
from validation.files import DamagedFileError
from validation.gate.verdict import CaseResult, CheckResult, Verdict
from validation.report import write_reports
from validation.report.evidence import CaseEvidence, State
from validation.report.gather import evidence_of, load_evidence, save_evidence
from validation.report.html import write_report
from validation.run_folder import JUNIT_FILE, REPORT_FILE
from validation.trace import CurveKey, Event, Key, Sketch, TableKey, Trace


def sketch(scale: float) -> Sketch:
    digest = np.float64(scale).tobytes().hex()
    return Sketch("float32", (4,), scale, scale / 4, scale, digest, (scale,) * 24)


def trace(*, moved: float = 1.0, loss: float = 3.0, mask_width: int = 4) -> Trace:
    events = [Event(Key(s, 0, "data", "batch", "tokens"), f"digest{s}") for s in range(1, 6)]
    for step in (1, 3):
        for layer in range(2):
            value = sketch(moved if (step, layer) == (3, 1) else 1.0)
            events.append(Event(Key(step, 0, "forward", f"layers.{layer}", "output"), value))
    return Trace(
        case="moe",
        provenance={"commit": "abc", "versions": {"torch": "2.11.0"}},
        events=events,
        curves={CurveKey("lm_loss"): {1: 4.0, 2: loss, 3: 2.0}},
        curve_phases={CurveKey("lm_loss"): "forward"},
        tables={
            TableKey("mask"): [[max(0, q - mask_width + 1), q + 1] for q in range(8)],
            TableKey("schedule"): [["normuon", 1]],
        },
    )


TOLERANCES = Tolerances({"curve:lm_loss": {1: 1e-3}, "forward:layers.#.output": {1: 1e-2}})


def case(golden: Trace, actual: Trace) -> CaseResult:
    comparison = compare(golden, actual, TOLERANCES)
    first = comparison.divergences[0] if comparison.divergences else None
    return CaseResult(
        "moe",
        Verdict.FAIL if first else Verdict.PASS,
        comparison.compared,
        comparison.identical,
        first_divergence=first,
        comparison=comparison,
        decoded={"golden": ("the ", "cat", " sat"), "actual": ("the ", "dog", " sat")},
        detects={"lm_loss": 1e-6},
    )


def test_states_are_those_of_the_comparator() -> None:
    evidence = evidence_of(case(trace(), trace(moved=1.5, loss=3.001, mask_width=5)))
    (curve,) = evidence.curves
    assert curve.states == [State.IDENTICAL, State.WITHIN, State.IDENTICAL]
    assert curve.tolerance[1] == pytest.approx(3e-3)
    moved = [e for e in evidence.events if e.state == State.OUTSIDE]
    assert [(e.step, e.module) for e in moved] == [(3, "layers.1")]
    assert moved[0].ratio is not None
    assert moved[0].ratio > 1
    assert {e.step for e in evidence.events} == {1, 3}
    (mask,) = evidence.tables
    assert (mask.name, mask.columns) == ("mask", 8)
    assert mask.golden is not None
    assert mask.golden[7] == [(4, 8)]
    assert mask.actual is not None
    assert mask.actual[7] == [(3, 8)]
    assert evidence.golden == {"commit": "abc", "versions.torch": "2.11.0"}
    assert [d.token for d in evidence.decoded] == ["cat", "dog"]
    assert evidence.detects == {"lm_loss": 1e-6}


def test_one_sided_and_nan_records_are_told_apart() -> None:
    golden, actual = trace(), trace(loss=math.nan)
    golden = replace(
        golden, events=golden.events[:-1], curves={**golden.curves, CurveKey("aux"): {1: 1.0}}
    )
    actual = replace(actual, events=actual.events[1:], tables={})
    evidence = evidence_of(case(golden, actual))
    states = {c.metric: c.states for c in evidence.curves}
    assert states["lm_loss"][1] == State.NAN
    assert states["aux"] == [State.MISSING]
    by_place = {(e.step, e.module): e.state for e in evidence.events}
    assert by_place[1, "batch"] == State.MISSING
    assert by_place[3, "layers.1"] == State.EXTRA
    assert evidence.tables[0].actual is None


def test_the_tolerance_is_drawn_where_the_comparator_holds_it_near_zero() -> None:
    golden = replace(trace(), curves={CurveKey("lm_loss"): {1: 0.0, 2: 1.0}})
    actual = replace(trace(), curves={CurveKey("lm_loss"): {1: 1e-9, 2: 1.0}})
    (curve,) = evidence_of(case(golden, actual)).curves
    room = curve.tolerance[0]
    within = curve.states[0] == State.WITHIN
    assert room is not None
    assert within == (room >= 1e-9)


@pytest.mark.parametrize("loss", [3.0, 3.5, math.nan, math.inf])
def test_evidence_survives_the_run_folder(tmp_path: Path, loss: float) -> None:
    one = case(trace(), trace(loss=loss, mask_width=6))
    result = CheckResult(Verdict.FAIL, "cpu", 1.0, {}, None, [one])
    save_evidence(result, tmp_path)
    kept = load_evidence(tmp_path, "moe")
    assert kept is not None
    assert repr(_plain(kept)) == repr(_plain(evidence_of(one)))
    assert load_evidence(tmp_path, "other") is None


def _plain(evidence: CaseEvidence) -> object:
    """Sequences of any kind as lists, so that repr (where NaN equals NaN) compares."""
    curves = [
        (c.metric, [*c.steps], [*c.golden], [*c.actual], [*c.tolerance], [*c.states])
        for c in evidence.curves
    ]
    tables = [(t.name, t.columns, t.golden, t.actual) for t in evidence.tables]
    return curves, list(evidence.events), tables, evidence.golden, list(evidence.decoded)


def test_a_report_from_the_folder_is_the_report_of_the_check(tmp_path: Path) -> None:
    one = case(trace(), trace(moved=2.0))
    result = CheckResult(Verdict.FAIL, "cpu", 1.0, {}, None, [one])
    write_reports(result, tmp_path)
    assert (tmp_path / JUNIT_FILE).is_file()
    stripped = replace(result, cases=[replace(one, comparison=None, decoded={})])
    again = write_report(stripped, tmp_path, tmp_path / "again.html")
    assert (
        again.read_text().split("<footer>")[0]
        == ((tmp_path / REPORT_FILE).read_text().split("<footer>")[0])
    )
    assert "cat" in again.read_text()


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "curves": [1]}'],
)
def test_damaged_evidence_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "evidence" / "moe.json"
    path.parent.mkdir()
    path.write_text(damage)
    with pytest.raises(DamagedFileError, match=r"moe\.json"):
        load_evidence(tmp_path, "moe")


@pytest.mark.parametrize("name", ["../moe", "/etc/passwd", "", ".hidden"])
def test_a_case_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(DamagedFileError, match="no name of a case"):
        load_evidence(tmp_path, name)
