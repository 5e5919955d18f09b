"""What loosens the gate is seen by the base's judge, and can be accepted if it was measured."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from random import Random
from typing import Any

import pytest

from validation.compare import Tolerances
from validation.config import Lane
from validation.gate.health import examine
from validation.gate.loosening import (
    find_loosenings,
    quarantine_in_force,
    verdict_if_accepted,
)
from validation.gate.quarantine import FILE
from validation.gate.verdict import CaseResult, Loosening, Verdict
from validation.goldens import Golden, GoldenStore
from validation.goldens.audit_log import AuditLog
from validation.goldens.calibrated import calibration_on_file, widened

TODAY = datetime.now(timezone.utc).date()
SCALE, SMALL, LARGE = "WIDTH**-0.5", "WIDTH**-0.5 * (1 + 1e-5)", "WIDTH**-0.5 * 1.05"


Recalibrate = Callable[..., Golden]


@pytest.fixture
def recalibrate(measured_as: Callable[..., Golden]) -> Recalibrate:
    """Tolerances so many times as wide, stored as `golden calibrate` stores them."""

    def recalibrate(root: Path, case: str, factor: float, reason: str = "another CPU") -> Golden:
        store = GoldenStore(root / "goldens")
        golden = store.load("cpu", case)
        return measured_as(store, golden, scaled(golden.tolerances, factor), reason)

    return recalibrate


def scaled(tolerances: Tolerances, factor: float) -> Tolerances:
    return Tolerances(
        {
            name: {step: factor * value for step, value in steps.items()}
            for name, steps in tolerances.classes.items()
        }
    )


def quarantine(goldens: Path, case: str, added: date = TODAY, days: int = 7) -> None:
    entry = {
        "case": case,
        "owner": "ada",
        "issue": "https://example.org/7",
        "added": str(added),
        "expires": str(added + timedelta(days=days)),
    }
    goldens.mkdir(exist_ok=True, parents=True)
    (goldens / FILE).write_text(json.dumps({"schema": 1, "entries": [entry]}))


def judged(project: Any, *cases: str, base: str = "HEAD") -> Any:
    """The verdict's JSON, whose exit code must be that of the strict verdict."""
    answer = project.golden("check", *cases, "--judge", base, "--json")
    document = answer.json()
    assert answer.code == {"PASS": 0, "FAIL": 1, "INVALID": 3}[document["verdict"]], answer.err
    return document


def test_the_story_of_a_recalibration(golden_project: Any, recalibrate: Recalibrate) -> None:
    project = golden_project
    base = project.git("rev-parse", "HEAD").strip()
    project.edit(SCALE, SMALL)
    assert "loosened" not in judged(project, "plain_loss")

    recalibrate(project.root, "plain_loss", 500.0, "rounds elsewhere")
    wide = judged(project, "plain_loss")
    assert wide["verdict"] == "FAIL", "the base's tolerances decide"
    (loosened,) = wide["loosened"]
    assert (loosened["kind"], loosened["case"]) == ("tolerance", "plain_loss")
    assert "(500 times" in loosened["text"]
    assert "Ada" in loosened["text"]
    assert "rounds elsewhere" in loosened["text"]
    assert wide["verdict_if_accepted"] == "PASS"

    shown = project.golden("check", "plain_loss", "--judge", "HEAD")
    assert shown.code == 1
    assert "loosens the gate: plain_loss: tolerances of" in shown.out
    assert "if an owner accepts this: PASS" in shown.out

    merged = project.commit("recalibrated, and accepted by an owner")
    again = judged(project, "plain_loss", base=merged)
    assert again["verdict"] == "PASS"
    assert "loosened" not in again
    assert judged(project, "plain_loss", base=base)["verdict"] == "FAIL"


def test_a_regression_beyond_the_new_tolerances_cannot_be_accepted(
    golden_project: Any, recalibrate: Recalibrate
) -> None:
    project = golden_project
    project.edit(SCALE, LARGE)
    recalibrate(project.root, "plain_loss", 5.0)
    document = judged(project, "plain_loss")
    assert document["verdict"] == document["verdict_if_accepted"] == "FAIL"
    assert document["loosened"][0]["acceptable"]


def test_tolerances_that_nobody_measured_cannot_be_accepted(
    golden_project: Any, recalibrate: Recalibrate
) -> None:
    project = golden_project
    project.edit(SCALE, SMALL)
    golden = recalibrate(project.root, "plain_loss", 500.0)
    # The audit file is of other tolerances: these were edited afterwards.
    edited = replace(golden, tolerances=scaled(golden.tolerances, 2.0))
    GoldenStore(project.root / "goldens").save(edited)
    document = judged(project, "plain_loss")
    assert document["verdict"] == document["verdict_if_accepted"] == "INVALID"
    (loosened,) = document["loosened"]
    assert not loosened["acceptable"]
    assert "golden calibrate plain_loss" in loosened["text"]


def test_a_canary_that_the_new_tolerances_hide_cannot_be_accepted(
    golden_project: Any, recalibrate: Recalibrate
) -> None:
    recalibrate(golden_project.root, "plain_loss", 1e12)
    document = judged(golden_project, "plain_loss")
    assert document["verdict"] == "PASS"
    assert document["verdict_if_accepted"] == "INVALID"


def test_a_quarantined_failure_and_what_a_removal_of_the_entry_says(golden_project: Any) -> None:
    project = golden_project
    project.edit(SCALE, LARGE)
    quarantine(project.root / "goldens", "plain_loss")
    document = judged(project, "plain_loss", "plain_seed")
    assert document["verdict"] == "FAIL"
    assert document["verdict_if_accepted"] == "FAIL", "plain_seed moves as well"
    project.edit(LARGE, SCALE)
    # plain_seed has a seed of its own.
    project.edit('settings.get("seed", 1)', 'settings.get("seed", 5)', "plain_cases.py")
    document = judged(project, "plain_loss", "plain_seed")
    assert document["verdict"] == "FAIL"
    assert [(item["kind"], item["case"]) for item in document["loosened"]] == [
        ("quarantine", "plain_loss")
    ]
    assert "quarantined until" in document["loosened"][0]["text"]
    assert document["verdict_if_accepted"] == "PASS"

    merged = project.commit("quarantine, accepted by an owner")
    assert judged(project, "plain_loss", "plain_seed", base=merged)["verdict"] == "PASS"
    (project.root / "goldens" / FILE).unlink()
    tightened = judged(project, "plain_loss", "plain_seed", base=merged)
    assert tightened["verdict"] == "FAIL", "whoever ends a quarantine says the case is repaired"
    assert "loosened" not in tightened


def test_calibrate_leaves_its_audit_and_health_knows_it(golden_project: Any) -> None:
    project = golden_project
    store = GoldenStore(project.root / "goldens")
    before = {path.name for path in (store.folder / "audit").iterdir()}
    answer = project.golden("calibrate", "plain_seed", "--runs", "3", "--reason", "a new image")
    assert answer.code == 0, answer.err
    (new,) = [p for p in (store.folder / "audit").iterdir() if p.name not in before]
    audit = json.loads(new.read_text())
    assert audit["reason"] == "a new image"
    assert audit["author"] == "Ada <ada@example.org>"
    (entry,) = audit["calibrated"]
    assert (entry["lane"], entry["case"], entry["runs"]) == ("cpu", "plain_seed", 3)
    golden = store.load("cpu", "plain_seed")
    found = calibration_on_file(AuditLog(store.folder), golden)
    assert found is not None
    assert (found.path, found.fields) == (new, entry)
    assert project.golden("health").code == 0
    # A calibration is no acceptance.
    for path in (store.folder / "audit").iterdir():
        if path != new and "goldens" in json.loads(path.read_text()):
            path.unlink()
    found = examine(project.root, {}, {}, {"cpu": Lane(name="cpu")})
    assert found  # no case is declared here
    assert "goldens/audit" in project.golden("health").out


def test_the_largest_factor_is_found_wherever_the_steps_are() -> None:
    """Against tolerances looked up step by step, for random calibrated steps."""
    for seed in range(200):
        random = Random(seed)

        def some(random: Random = random) -> Tolerances:
            steps = sorted(random.sample(range(1, 12), random.randint(1, 5)))
            names = random.sample(["a", "b", "c"], random.randint(1, 3))
            return Tolerances(
                {n: {s: random.choice([1.0, 2.0, 3.0]) for s in steps} for n in names}
            )

        before, after = some(), some()
        ratios = [
            after.of(name, step) / before.of(name, step) if before.of(name, step) else float("inf")
            for name in after.classes
            for step in range(1, 13)
        ]
        found = widened(before, after)
        assert (found.factor if found else 1.0) == max(1.0, *ratios)
        assert widened(after, after) is None
        assert widened(after, scaled(after, 0.5)) is None
        assert widened(Tolerances(), after) is not None
    assert widened(Tolerances({"a": {1: 1.0}}), Tolerances({"a": {1: float("nan")}})) is not None


def test_only_goldens_that_both_have_are_compared(
    golden_project: Any, recalibrate: Recalibrate, tmp_path: Path
) -> None:
    goldens, judge = golden_project.root / "goldens", tmp_path / "base" / "goldens"
    shutil.copytree(goldens, judge)
    assert find_loosenings(goldens, judge, "cpu") == []
    recalibrate(golden_project.root, "plain_loss", 1.0)
    assert find_loosenings(goldens, judge, "cpu") == [], "no wider"
    recalibrate(golden_project.root, "plain_seed", 3.0)
    assert [item.case for item in find_loosenings(goldens, judge, "cpu")] == ["plain_seed"]
    assert find_loosenings(goldens, judge, "h200") == []
    shutil.rmtree(judge / "cpu" / "plain_seed")
    assert find_loosenings(goldens, judge, "cpu") == [], "a case that only the change has"


@pytest.mark.parametrize(
    ("base", "ours", "listed", "in_force"),
    [
        (None, 7, True, None),
        (7, 7, False, 7),
        (7, 9, True, 7),
        (7, 3, False, 3),
        (7, None, False, None),
        (-1, None, False, None),
        (-1, 5, True, -1),
        (None, None, False, None),
    ],
)
def test_the_stricter_quarantine_is_in_force(
    tmp_path: Path, base: int | None, ours: int | None, listed: bool, in_force: int | None
) -> None:
    """Entries that end so many days from now; None for no entry."""
    start = TODAY - timedelta(days=5)
    for folder, end in (("base", base), ("ours", ours)):
        if end is not None:
            quarantine(tmp_path / folder, "a", start, end + 5)
    judge, goldens = tmp_path / "base", tmp_path / "ours"
    found = [] if base is None and ours is None else find_loosenings(goldens, judge, "cpu")
    assert [item.case for item in found] == (["a"] if listed else [])
    obeyed = quarantine_in_force(goldens, judge)
    ends = [(entry.expires - TODAY).days for entry in obeyed]
    assert ends == ([] if in_force is None else [in_force])


def test_a_broken_quarantine_file_is_seen_before_it_is_everybodys(tmp_path: Path) -> None:
    quarantine(tmp_path / "base", "a")
    quarantine(tmp_path / "ours", "a", days=15)
    (found,) = find_loosenings(tmp_path / "ours", tmp_path / "base", "cpu")
    assert not found.acceptable
    assert "at most 14 days" in found.text
    assert [e.case for e in quarantine_in_force(tmp_path / "ours", tmp_path / "base")] == ["a"]


def test_an_owner_accepts_no_invalid_case_and_no_blind_canary(tmp_path: Path) -> None:
    quarantine(tmp_path, "a")
    loosening = [Loosening("quarantine", "a", "")]
    fine = CaseResult("b", Verdict.PASS)

    def verdict(*results: CaseResult, proves: bool = True) -> Verdict:
        return verdict_if_accepted(loosening, results, tmp_path, lambda: proves)

    failed, gone = CaseResult("a", Verdict.FAIL), CaseResult("a", Verdict.INVALID)
    assert verdict(failed, fine) is Verdict.PASS
    assert verdict(failed, fine, proves=False) is Verdict.INVALID
    assert verdict(gone, fine) is Verdict.INVALID
    assert verdict(failed) is Verdict.INVALID, "quarantined cases alone prove nothing"
    assert verdict(failed, replace(fine, verdict=Verdict.UNFIT)) is Verdict.UNFIT
    within = replace(fine, verdict=Verdict.FAIL, if_accepted=Verdict.PASS)
    assert verdict(failed, within) is Verdict.PASS
