"""Quarantine leaves a failing case out of the verdict for days, and never for good."""

import json
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from validation.files import DamagedFileError
from validation.gate.quarantine import FILE, apply_quarantine, load_quarantine
from validation.gate.verdict import CaseResult, Verdict, worst

TODAY = datetime.now(timezone.utc).date()


def entry(
    case: str = "plain_loss", added: date = TODAY, days: int = 7, **more: str
) -> dict[str, str]:
    return {
        "case": case,
        "owner": "ada",
        "issue": "https://example.org/7",
        "added": str(added),
        "expires": str(added + timedelta(days=days)),
        **more,
    }


def write(goldens: Path, *entries: dict[str, str]) -> None:
    goldens.mkdir(exist_ok=True)
    (goldens / FILE).write_text(json.dumps({"schema": 1, "entries": entries}))


def test_a_quarantined_failure_is_shown_and_not_counted(tmp_path: Path) -> None:
    write(tmp_path, entry("a"))
    results = [CaseResult("a", Verdict.FAIL, message="moved"), CaseResult("b", Verdict.PASS)]
    shown, counted = apply_quarantine(results, load_quarantine(tmp_path))
    assert [r.verdict for r in shown] == [Verdict.FAIL, Verdict.PASS]
    assert "quarantined until" in shown[0].message
    assert "moved" in shown[0].message
    assert worst(counted) is Verdict.PASS


def test_quarantine_excuses_no_invalid_case_and_never_passes_alone(tmp_path: Path) -> None:
    write(tmp_path, entry("a"))
    entries = load_quarantine(tmp_path)
    _, counted = apply_quarantine([CaseResult("a", Verdict.INVALID)], entries)
    assert worst(counted) is Verdict.INVALID
    _, counted = apply_quarantine([CaseResult("a", Verdict.FAIL)], entries)
    assert worst(counted) is Verdict.INVALID


@pytest.mark.parametrize("verdict", [Verdict.PASS, Verdict.FAIL])
def test_an_expired_entry_fails_whatever_the_case_does(tmp_path: Path, verdict: Verdict) -> None:
    write(tmp_path, entry("a", TODAY - timedelta(days=8)))
    shown, counted = apply_quarantine([CaseResult("a", verdict)], load_quarantine(tmp_path))
    assert counted == [Verdict.FAIL]
    assert "expired" in shown[0].message


@pytest.mark.parametrize(
    "bad",
    [
        entry(days=15),
        entry(days=-1),
        entry(added=TODAY + timedelta(days=3)),
        entry(owner=" "),
        entry(expires="soon"),
        {"case": "a"},
    ],
)
def test_a_loose_entry_is_refused_by_the_files_name(tmp_path: Path, bad: dict[str, str]) -> None:
    write(tmp_path, bad)
    with pytest.raises(DamagedFileError, match=FILE):
        load_quarantine(tmp_path)


def test_check_obeys_it(golden_project: Any) -> None:
    project = golden_project
    project.edit("WIDTH**-0.5", "WIDTH**-0.5 * 1.01")
    write(project.root / "goldens", entry("plain_loss"), entry("plain_seed"))
    answer = project.golden("check", "--json")
    assert answer.code == 3, "quarantined cases alone prove nothing"
    assert [case["verdict"] for case in answer.json()["cases"]] == ["FAIL", "FAIL"]
    write(project.root / "goldens", entry("plain_loss", TODAY - timedelta(days=9)))
    answer = project.golden("check", "plain_loss", "--json")
    assert answer.code == 1
    assert "expired" in answer.json()["cases"][0]["message"]
