"""Which PASS a check is, how near it came, and when the machine may be why it is none."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from validation.cases import Case
from validation.compare import Divergence, Tolerances, compare
from validation.gate.nearness import calibrated_here, may_be_the_machine, nearness, summary
from validation.gate.verdict import CaseResult, CheckResult, Verdict
from validation.goldens import Golden
from validation.report.wording import headline, notes
from validation.running.environment import machine_type
from validation.running.recorder import Recorder
from validation.trace import CurveKey, Trace

AMD = {"lane": "cpu", "cpu_vendor": "AuthenticAMD", "cpu_family": 25, "cpu_model": 17}
INTEL = {"lane": "cpu", "cpu_vendor": "GenuineIntel", "cpu_family": 6, "cpu_model": 207}
CASE = Case(name="loop", description="a loop", lanes=["cpu"], target="a:b")
PLACE = Divergence(step=2, phase="optimizer", module="training", tensor="update_rms/norm")


def trace(loss: float, ids: int = 1) -> Trace:
    recorder = Recorder()
    recorder.curve(1, "lm_loss", 2.0)
    recorder.curve(2, "lm_loss", loss)
    recorder.discrete("ids", [ids], step=1, micro_batch=0, phase="data")
    return recorder.trace("loop", {"environment": AMD})


def golden(tolerance: float | None = 1e-6, calibrated_on: Any = ()) -> Golden:
    classes = {} if tolerance is None else {"curve:lm_loss": {1: tolerance}}
    return Golden(
        lane="cpu",
        trace=trace(2.0),
        case_digest="",
        accepted={},
        tolerances=Tolerances(classes),
        calibration={"calibrated_on": calibrated_on},
    )


def said(case: Case, of: Golden, run: Trace, environment: dict[str, Any] = INTEL) -> str:
    divergences = compare(of.trace, run, of.tolerances).divergences
    assert divergences
    return may_be_the_machine(case, of, environment, divergences, "cpu")


def test_a_machines_type_is_its_cpu_or_what_is_known_of_it() -> None:
    assert machine_type(AMD) == "AuthenticAMD 25/17"
    assert machine_type({"device": "Some CPU", "cpu_vendor": "X"}) == "Some CPU"
    card = {"lane": "h200", "device": "NVIDIA H200", "capability": "9.0"}
    assert machine_type({**AMD, **card}) == "NVIDIA H200"


@pytest.mark.parametrize("listed", [None, (), ["AuthenticAMD 25/17"], [{"runs": 8}], [{}]])
def test_a_list_without_this_type_calibrates_nothing_here(listed: Any) -> None:
    assert not calibrated_here(golden(calibrated_on=listed), AMD)
    known = [*(listed or ()), {"machine": "AuthenticAMD 25/17", "runs": 8, "largest_ratio": 0.4}]
    assert calibrated_here(golden(calibrated_on=known), AMD)
    assert not calibrated_here(golden(calibrated_on=known), INTEL)


def test_a_small_fail_on_an_unknown_machine_names_the_command_that_settles_it() -> None:
    text = said(CASE, golden(), trace(2.0 * (1 + 3e-6)))
    assert "a ratio of 3" in text
    assert "GenuineIntel 6/207" in text
    assert "golden check loop --against REV --lane cpu" in text
    text = said(CASE, golden(tolerance=None), trace(2.0 * (1 + 3e-6)))
    assert "never calibrated" in text
    assert "--against" in text


@pytest.mark.parametrize(
    ("of", "run", "environment"),
    [
        (golden(), trace(2.0 * (1 + 3e-5)), INTEL),  # more than machines do
        (golden(), trace(math.nan), INTEL),
        (golden(), trace(2.0 * (1 + 3e-6), ids=2), INTEL),  # a discrete record moved as well
        (
            golden(),
            replace(trace(2.0), curves={CurveKey("lm_loss"): {1: 2.0}}),
            INTEL,
        ),  # one is missing
        (golden(tolerance=None), trace(2.01), INTEL),
        (golden(), trace(2.0 * (1 + 3e-6)), AMD),  # the machine that made the golden
        (golden(calibrated_on=[{"machine": "GenuineIntel 6/207"}]), trace(2.00001), INTEL),
    ],
)
def test_the_machine_is_not_blamed_for_more(
    of: Golden, run: Trace, environment: dict[str, Any]
) -> None:
    assert said(CASE, of, run, environment) == ""


@pytest.mark.parametrize("loss", [2.000006, 3.0])
def test_in_wide_arithmetic_it_is_never_the_machine(loss: float) -> None:
    wide = replace(CASE, arithmetic="wide")
    text = said(wide, golden(), trace(loss))
    assert "another machine gives the same bits" in text
    assert "--against" not in text
    assert said(wide, golden(), trace(loss, ids=2)) == ""


@given(st.lists(st.floats(min_value=1.0, max_value=2.0), min_size=1, max_size=5))
def test_the_largest_ratio_is_that_of_the_worst_record_and_zero_has_no_place(
    losses: list[float],
) -> None:
    of = golden(tolerance=0.25)
    comparisons = [compare(of.trace, trace(loss), of.tolerances) for loss in losses]
    found = nearness(*comparisons)
    expected = max(abs(loss - 2.0) / 2.0 / 0.25 for loss in losses)
    assert found["largest_ratio"] == pytest.approx(expected)
    assert (found["largest_at"] is None) == (found["largest_ratio"] == 0.0)
    assert nearness() == {}


def result(*cases: CaseResult, verdict: Verdict = Verdict.PASS, lane: str = "cpu") -> CheckResult:
    return CheckResult(verdict, lane, 1.0, INTEL, None, cases)


SAME = CaseResult("same", Verdict.PASS, 10, 10, largest_ratio=0.0, calibrated_here=False)
NEAR = CaseResult("near", Verdict.PASS, 10, 9, None, 1.0, None, "", 0.43, PLACE)
NEAR = replace(NEAR, calibrated_here=False)


def test_identical_holds_on_any_machine_only_where_all_cases_are_wide() -> None:
    wide = replace(SAME, wide=True)
    assert "on this machine." in summary(result(SAME))
    assert "on any machine in the 1 that" in summary(result(SAME, wide))
    assert summary(result(wide, wide)).endswith("differently on any machine.")
    assert all("Nobody" not in summary(result(*cases)) for cases in [(SAME,), (wide, SAME)])


def test_an_unknown_machine_is_told_what_the_tolerances_stand_for_and_how_near_it_came() -> None:
    check = result(SAME, NEAR)
    assert headline(check).startswith("WITHIN TOLERANCE: 2 cases ran")
    assert "0.43: near, step 2, optimizer, training, update_rms/norm" in headline(check)
    (note,) = notes(check)
    assert "Nobody calibrated near on this type of machine (GenuineIntel 6/207)" in note
    assert "random rounding" in note
    assert "0.43: near" in note
    on_a_gpu = replace(result(NEAR, lane="h200"), environment={"device": "X", "capability": "9.0"})
    assert "random rounding" not in summary(on_a_gpu)
    assert not notes(result(replace(NEAR, calibrated_here=True)))
    # What an older run folder does not say is not made up.
    assert not notes(result(replace(NEAR, calibrated_here=None)))


def test_a_wide_case_within_tolerance_was_moved_by_code() -> None:
    (note,) = notes(result(replace(NEAR, wide=True)))
    assert "every machine gives the same bits" in note
    assert "Nobody" not in note


def test_a_quarantined_fail_makes_no_check_identical() -> None:
    moved = CaseResult("moved", Verdict.FAIL, 10, 10, largest_ratio=7.0, largest_at=PLACE)
    check = result(SAME, moved)
    assert check.kind == "WITHIN TOLERANCE"
    assert "1 quarantined case moved" in summary(check)
    assert "7" not in summary(check)
    assert check.to_json()["largest_ratio"] == 7.0


def test_infinite_ratios_are_text_in_json() -> None:
    moved = CaseResult("moved", Verdict.FAIL, 10, 9, largest_ratio=math.inf, largest_at=PLACE)
    document = result(moved, SAME, verdict=Verdict.FAIL).to_json()
    assert (document["largest_ratio"], document["cases"][0]["largest_ratio"]) == ("inf", "inf")
    assert document["cases"][0]["largest_at"]["tensor"] == "update_rms/norm"
    assert document["cases"][1]["largest_at"] is None
