"""A failure that does not repeat itself is no failure of the code."""

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from validation.compare import Tolerances
from validation.gate.quarantine import QuarantineEntry, apply_quarantine
from validation.gate.repeat import first_difference, verdict_of
from validation.gate.verdict import CaseResult, CheckResult, Verdict, worst
from validation.trace import CurveKey, Event, Key, Trace

# Flips one bit of a weight in one of the runs: the one that finds so many lines in the file.
FLIP = """\
        if step == 1:
            from pathlib import Path
            runs = Path({file!r})
            with runs.open("a") as written:
                written.write("run\\n")
            if len(runs.read_text().splitlines()) in {chosen!r}:
                weight = model[1].qkv.weight.data.view(torch.int32)
                weight[3, 5] ^= 1 << 29
        optimizer.zero_grad()
"""
RANDOM = "x + self.out((1.0 + __import__('time').time_ns() % 1000 * 1e-3) * "


def _flips(project: Any, file: Path, *chosen: int) -> None:
    project.edit(
        "        optimizer.zero_grad()\n", FLIP.format(file=str(file), chosen=list(chosen))
    )


def _checked(project: Any, code: int) -> dict[str, Any]:
    answer = project.golden("check", "plain_loss", "--json")
    assert answer.code == code, answer.out + answer.err
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize(("run", "which"), [(1, "first"), (2, "second")])
def test_a_bit_that_flips_once_is_a_fault_of_the_machine(
    golden_project: Any, tmp_path: Path, run: int, which: str
) -> None:
    """The first run flips alone, or a changed code fails and the repeat flips."""
    _flips(golden_project, tmp_path / "runs", run)
    if run == 2:
        golden_project.edit("WIDTH**-0.5", "WIDTH**-0.5 * 1.01")
    found = _checked(golden_project, 5)
    case = found["cases"][0]
    assert found["verdict"] == case["verdict"] == "HARDWARE"
    assert case["repeat"]["runs"] == 3
    assert not case["repeat"]["repeated"]
    assert case["first_divergence"] == case["repeat"]["first_divergence"]
    assert case["first_divergence"]["module"] == "1.qkv"
    assert case["first_divergence"]["step"] == 1
    assert f"the {which} stands alone" in found["message"]


def test_a_kernel_that_is_never_the_same_is_named(golden_project: Any) -> None:
    golden_project.edit("x + self.out(", RANDOM)
    found = _checked(golden_project, 5)
    case = found["cases"][0]
    assert found["verdict"] == case["verdict"] == "NONDETERMINISTIC"
    assert case["first_divergence"]["module"] in {"1", "1.out"}
    assert "no two are alike" in found["message"]
    report = golden_project.golden("explain")
    assert "NONDETERMINISTIC" in report.out


def test_a_failure_of_the_code_repeats_itself(golden_project: Any) -> None:
    golden_project.edit("WIDTH**-0.5", "WIDTH**-0.5 * 1.01")
    case = _checked(golden_project, 1)["cases"][0]
    assert case["verdict"] == "FAIL"
    assert case["repeat"] == {"runs": 2, "repeated": True, "first_divergence": None}
    assert "repeated itself" in case["message"]


@pytest.mark.parametrize(
    ("chosen", "verdict", "code"), [((1,), "HARDWARE", 5), ((1, 2, 3), "FAIL", 1)]
)
def test_a_run_that_ends_early_is_made_again(
    golden_project: Any, tmp_path: Path, chosen: tuple[int, ...], verdict: str, code: int
) -> None:
    _flips(golden_project, tmp_path / "runs", *chosen)
    golden_project.edit("weight[3, 5] ^= 1 << 29", "raise SystemExit('a parity error')")
    case = _checked(golden_project, code)["cases"][0]
    assert case["verdict"] == verdict
    assert case["repeat"]["repeated"] is (verdict == "FAIL")


def test_a_pass_runs_once(golden_project: Any, tmp_path: Path) -> None:
    _flips(golden_project, tmp_path / "runs")
    found = _checked(golden_project, 0)
    assert "repeat" not in found["cases"][0]
    canary = 1
    assert len((tmp_path / "runs").read_text().splitlines()) == 1 + canary


def _trace(*values: float) -> Trace:
    event = Event(Key(1, 0, "data", "batch", "tokens"), [1, 2])
    series = dict(enumerate(values, start=1))
    return Trace("case", events=[event], curves={CurveKey("lm_loss"): series})


def test_three_runs_decide() -> None:
    exact = Tolerances()
    good, flipped, other = _trace(1.0), _trace(2.0), _trace(3.0)
    first = verdict_of([flipped, good, good], exact)
    assert (first.verdict, first.runs) == (Verdict.HARDWARE, 3)
    assert "the first stands alone" in first.message
    assert first.first_divergence is not None
    assert (first.first_divergence.actual, first.first_divergence.expected) == (2.0, 1.0)
    second = verdict_of([good, flipped, good], exact)
    assert second.verdict is Verdict.HARDWARE
    assert "the second stands alone" in second.message
    third = verdict_of([good, flipped, other], exact)
    assert third.verdict is Verdict.NONDETERMINISTIC


def test_what_is_no_difference() -> None:
    nan = float("nan")
    assert first_difference(_trace(nan, 1.0), _trace(nan, 1.0)) is None
    assert first_difference(_trace(nan, 1.0), _trace(nan, 2.0)) is not None
    assert first_difference(_trace(1.0, 2.0), _trace(1.0)) is None  # stopped earlier
    assert first_difference(_trace(1.0, nan), _trace(1.0, 2.0)) is not None


def test_verdicts_in_their_order_and_quarantine() -> None:
    assert worst([Verdict.PASS, Verdict.UNFIT, Verdict.HARDWARE]) is Verdict.HARDWARE
    assert worst([Verdict.NONDETERMINISTIC, Verdict.HARDWARE]) is Verdict.NONDETERMINISTIC
    assert worst([Verdict.NONDETERMINISTIC, Verdict.FAIL]) is Verdict.FAIL
    for verdict in (Verdict.HARDWARE, Verdict.NONDETERMINISTIC):
        result = CheckResult(verdict, "cpu", 0.0, {}, None, ())
        assert result.exit_code == 5
        assert json.loads(json.dumps(result.to_json()))["verdict"] == str(verdict)
    today = datetime.now(timezone.utc).date()
    entry = QuarantineEntry("a", "ada", "https://example.org/1", today, today)
    results = [CaseResult("a", Verdict.NONDETERMINISTIC), CaseResult("b", Verdict.PASS)]
    assert apply_quarantine(results, [entry])[1] == [Verdict.PASS]
    hardware = [CaseResult("a", Verdict.HARDWARE)]
    assert apply_quarantine(hardware, [entry])[1] == [Verdict.HARDWARE]
