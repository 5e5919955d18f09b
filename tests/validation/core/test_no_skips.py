"""`golden check --no-skips`: a case that did not run is no PASS."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from validation.gate.verdict import CaseResult, CheckResult, Verdict, refuse_skips

RAN = CaseResult("ran", Verdict.PASS, compared=3, identical=3)
SKIPPED = CaseResult("left", Verdict.SKIPPED, skipped_because="needs 2 GPU(s), this machine has 0")


def check(verdict: Verdict, *cases: CaseResult, message: str = "why") -> CheckResult:
    """A check that ended so."""
    return CheckResult(
        verdict=verdict,
        lane="cpu",
        seconds=1.0,
        environment={},
        canary=None,
        cases=cases,
        message=message,
    )


@pytest.mark.parametrize(
    ("verdict", "cases", "expected", "first"),
    [
        (Verdict.PASS, [RAN], Verdict.PASS, "why"),
        (Verdict.PASS, [RAN, SKIPPED], Verdict.UNFIT, "--no-skips: 1 of 2 cases did not run: left"),
        (Verdict.FAIL, [RAN, SKIPPED], Verdict.FAIL, "why"),
        (Verdict.INVALID, [SKIPPED], Verdict.INVALID, "why"),
    ],
)
def test_a_skip_makes_a_pass_unfit_and_leaves_what_is_worse(
    verdict: Verdict, cases: Sequence[CaseResult], expected: Verdict, first: str
) -> None:
    result = refuse_skips(check(verdict, *cases))
    assert result.verdict is expected
    assert result.message.startswith(first)
    named = SKIPPED in cases
    assert ("left (needs 2 GPU(s), this machine has 0)" in result.message) is named
    assert result.to_json()["refused_skips"] == (["left"] if named else [])


def test_the_object_says_nothing_of_skips_where_they_are_allowed() -> None:
    assert "refused_skips" not in check(Verdict.PASS, RAN, SKIPPED).to_json()


def test_ci_can_demand_that_nothing_is_skipped(golden_project: Any) -> None:
    project = golden_project
    assert project.golden("check", "plain_loss", "--no-skips", "--json").code == 0
    old = 'name="plain_seed",\n'
    project.edit(old, f'{old}        needs=Needs(modules=["no_such_library"]),\n', "plain_cases.py")
    project.edit(
        "import Benign, Case, Fault", "import Benign, Case, Fault, Needs", "plain_cases.py"
    )
    assert project.golden("check", "--json").code == 0
    answer = project.golden("check", "--no-skips", "--json", "--junit", "junit.xml")
    verdict = answer.json()
    assert answer.code == 4, answer.err
    assert verdict["verdict"] == "UNFIT"
    assert verdict["refused_skips"] == ["plain_seed"]
    assert "plain_seed" in verdict["message"]
    assert "no_such_library" in verdict["message"]
    kept = json.loads((project.latest_run() / "verdict.json").read_text())
    assert kept == verdict
    assert "UNFIT" in (project.root / "junit.xml").read_text()
