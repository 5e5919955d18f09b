"""Tolerances follow from measured noise: whatever is edited by hand, a check and health see it."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from validation.calibration.derived import (
    UnderivedError,
    noise_of_line,
    problems_of,
    refuse_underived,
    rounded_up,
)
from validation.calibration.noise import (
    EPSILON,
    FACTOR,
    floor_of,
    largest_of,
    largest_so_far,
    tolerances_from,
)
from validation.compare import Tolerances
from validation.config import Lane
from validation.files import DamagedFileError, digest, encode_json
from validation.gate.health import examine, notes
from validation.gate.loosening import find_loosenings
from validation.goldens import Golden, GoldenStore
from validation.goldens.audit_log import AuditLog
from validation.goldens.calibrated import calibration_digest, calibration_on_file, rerun_digests
from validation.goldens.golden import tolerances_digest
from validation.goldens.layout import HEAD

CASE = "plain_seed"
LANES = {"cpu": Lane(name="cpu")}


def store_of(project: Any) -> GoldenStore:
    return GoldenStore(project.root / "goldens")


def edit(project: Any, change: Callable[[dict[str, Any]], None]) -> Golden:
    """Edits a head, and gives it the digest of what it then holds."""
    store = store_of(project)
    path = store.path("cpu", CASE) / HEAD
    head = json.loads(path.read_text())
    del head["digest"]
    change(head)
    path.write_bytes(encode_json({**head, "digest": digest(encode_json(head))}))
    return store.load("cpu", CASE)


def wrong(project: Any) -> list[str]:
    store = store_of(project)
    return [p.text for p in problems_of(store.load("cpu", CASE), AuditLog(store.folder))]


def scale(values: dict[str, dict[str, float]], factor: float) -> None:
    for steps in values.values():
        for step in steps:
            steps[step] *= factor


def derive(head: dict[str, Any]) -> None:
    """Gives a head the tolerances that follow from what else it holds."""
    record = head["calibration"]
    noise = {
        name: {step: record["noise"].get(name, {}).get(str(step), 0.0) for step in entry["steps"]}
        for name, entry in head["tolerances"].items()
    }
    grains = {n: {int(s): v for s, v in found.items()} for n, found in record["grains"].items()}
    followed = tolerances_from(noise, floor_of(record["largest_sum"]), grains)
    for name, entry in head["tolerances"].items():
        entry["values"] = [followed.classes[name][step] for step in entry["steps"]]


def wide_tolerances(head: dict[str, Any]) -> None:
    for entry in head["tolerances"].values():
        entry["values"] = [0.2 for _ in entry["values"]]


def one_tolerance(head: dict[str, Any]) -> None:
    head["tolerances"]["curve:lm_loss"]["values"][0] *= 1.001


def narrow_tolerances(head: dict[str, Any]) -> None:
    for entry in head["tolerances"].values():
        entry["values"] = [value / 2 for value in entry["values"]]


def noise(head: dict[str, Any]) -> None:
    scale(head["calibration"]["noise"], 1e4)
    derive(head)


def noise_of_one_class(head: dict[str, Any]) -> None:
    head["calibration"]["noise"]["curve:lm_loss"] = {"1": 0.05}
    derive(head)


def noise_and_reruns(head: dict[str, Any]) -> None:
    found = head["calibration"]["noise"]
    scale(found, 1e3)
    for rerun in head["calibration"]["reruns"]:
        rerun["noise"] = [
            rounded_up(found.get(name, {}).get(str(step), 0.0))
            for name, entry in sorted(head["tolerances"].items())
            for step in entry["steps"]
        ]
    derive(head)


def a_rerun_more(head: dict[str, Any]) -> None:
    reruns = head["calibration"]["reruns"]
    line = [0.05 for _ in reruns[0]["noise"]]
    reruns.append({**reruns[0], "name": "random rounding 99", "noise": line})
    every = {n: dict.fromkeys(map(str, e["steps"]), 0.05) for n, e in head["tolerances"].items()}
    head["calibration"]["noise"] = every
    derive(head)


def floor(head: dict[str, Any]) -> None:
    head["calibration"]["floor"] = 0.1


def terms(head: dict[str, Any]) -> None:
    head["calibration"] |= {"largest_sum": 2**40, "floor": floor_of(2**40)}
    derive(head)


def terms_beyond_reason(head: dict[str, Any]) -> None:
    head["calibration"] |= {"largest_sum": 10**4000, "floor": 13288 * EPSILON}


def grains(head: dict[str, Any]) -> None:
    head["calibration"]["grains"] = {"curve:lm_loss": {"1": 0.2}}
    derive(head)


def factor(head: dict[str, Any]) -> None:
    head["calibration"]["factor"] = 10 * FACTOR
    for entry in head["tolerances"].values():
        entry["values"] = [10 * value for value in entry["values"]]


def no_calibration(head: dict[str, Any]) -> None:
    head["calibration"] = {}
    wide_tolerances(head)


def as_of_an_earlier_version(head: dict[str, Any]) -> None:
    noise(head)
    del head["calibration"]["reruns"], head["calibration"]["grains"]


def as_of_the_earliest_version(head: dict[str, Any]) -> None:
    record = head["calibration"]
    scale(record["noise"], 1e4)
    head["calibration"] = {
        "safety": 16.0,
        "noise": record["noise"],
        "runs": 5,
        "time": record["time"],
    }
    for name, entry in head["tolerances"].items():
        known = {int(s): v for s, v in record["noise"].get(name, {}).items()}
        entry["values"] = [max(1e-6, 16 * largest_so_far(known, s)) for s in entry["steps"]]


def not_a_number(head: dict[str, Any]) -> None:
    head["calibration"]["noise"]["curve:lm_loss"] = {"1": "inf"}


def no_object(head: dict[str, Any]) -> None:
    head["calibration"]["noise"] = [0.2]


FOLLOWS = "follows from the noise stored with it"
ON_FILE = "no intact file under goldens/audit"
FORGERIES = [
    (wide_tolerances, FOLLOWS),
    (one_tolerance, FOLLOWS),
    (narrow_tolerances, FOLLOWS),
    (noise, "the largest of its 5 reruns"),
    (noise_of_one_class, "the noise of curve:lm_loss at step 1 is 0.05"),
    (noise_and_reruns, ON_FILE),
    (a_rerun_more, ON_FILE),
    (floor, "follows from sums of"),
    (terms, ON_FILE),
    (terms_beyond_reason, "largest_sum"),
    (grains, ON_FILE),
    (factor, "the rule has 4"),
    (no_calibration, "no calibration"),
    (as_of_an_earlier_version, ON_FILE),
    (as_of_the_earliest_version, "none tells of it"),
    (not_a_number, "Expected `float`, got `str` - at `$.noise"),
    (no_object, "Expected `object`, got `array` - at `$.noise`"),
]


@pytest.fixture
def project(golden_project: Any) -> Any:
    assert wrong(golden_project) == []
    return golden_project


@pytest.mark.parametrize(
    ("forge", "text"), FORGERIES, ids=lambda value: getattr(value, "__name__", "")
)
def test_an_edited_golden_does_not_count(
    project: Any, forge: Callable[[dict[str, Any]], None], text: str
) -> None:
    golden = edit(project, forge)
    store = store_of(project)
    with pytest.raises(UnderivedError, match=re.escape(text)) as raised:
        refuse_underived(golden, AuditLog(store.folder))
    assert str(raised.value).startswith(str(store.path("cpu", CASE) / HEAD))
    assert f"golden calibrate {CASE} --lane cpu" in str(raised.value)
    found = [f for f in examine(project.root, {}, {}, LANES) if f.kind != "orphaned"]
    assert found == [], "without the case there is nothing but that"


def test_a_problem_names_class_step_stored_and_derived_value(project: Any) -> None:
    golden = edit(project, one_tolerance)
    stored = golden.tolerances.of("curve:lm_loss", 1)
    (text,) = wrong(project)
    assert f"curve:lm_loss at step 1 is {stored:.6g}, and {stored / 1.001:.6g} follows" in text


def test_a_forged_golden_is_invalid_on_main_and_for_the_next_change(project: Any) -> None:
    edit(project, wide_tolerances)
    listed = project.golden("health")
    assert listed.code == 1
    assert f"underived: cpu/{CASE}: the tolerance of " in listed.out
    base = project.git("rev-parse", "HEAD").strip()
    first = project.golden("check", CASE, "--judge", base, "--json")
    assert first.code == 3
    assert not first.json()["loosened"][0]["acceptable"]
    merged = project.commit("merged all the same")
    here = project.golden("check", CASE, "--json")
    assert here.code == 3
    assert FOLLOWS in here.json()["cases"][0]["message"]
    # The second change restores the golden: what judges it is still forged.
    project.git("checkout", "--quiet", base, "--", "goldens")
    project.edit("WIDTH**-0.5", "WIDTH**-0.5 * 1.01")
    second = project.golden("check", CASE, "--judge", merged, "--json")
    assert second.code == 3
    assert FOLLOWS in second.json()["cases"][0]["message"]


# --- the audit --------------------------------------------------------------------------------


def calibrations(project: Any) -> list[Path]:
    """Audit files of the case's calibrations, the latest last."""
    log = AuditLog(store_of(project).folder)
    return [e.path for e in log.of("cpu", CASE) if e.kind == "calibrated"]


def rewritten(path: Path, golden: Golden, rename: bool) -> Path:
    """An audit file with the digests of a golden, under its old name or under a fitting one."""
    document = json.loads(path.read_text())
    (entry,) = document["calibrated"]
    entry["tolerances"] = tolerances_digest(golden.tolerances)
    entry["calibration"] = calibration_digest(golden)
    entry["reruns"] = rerun_digests(golden)
    content = encode_json(document)
    path.unlink()
    new = path.with_name(f"{path.stem[:-8]}{digest(content)[:8]}.json") if rename else path
    new.write_bytes(content)
    return new


def audit_findings(project: Any) -> list[str]:
    return [f.text for f in examine(project.root, {}, {}, LANES) if f.kind == "audit"]


def test_an_edited_audit_file_shows_by_its_name(project: Any) -> None:
    golden = edit(project, noise_and_reruns)
    (path,) = calibrations(project)
    rewritten(path, golden, rename=False)
    assert ON_FILE in wrong(project)[0]
    assert "was edited" in audit_findings(project)[0]
    path.unlink()
    assert ON_FILE in wrong(project)[0]
    path.write_text("{")
    assert "not JSON" in audit_findings(project)[0]
    path.write_text('{"calibrated": [3]}')
    assert "Expected `object`, got `int` - at `$.calibrated[0]`" in audit_findings(project)[0]


def test_a_rewritten_audit_file_shows_by_the_next_entry_of_its_golden(
    project: Any, measured_as: Callable[..., Golden]
) -> None:
    store = store_of(project)
    (path,) = calibrations(project)
    before = store.load("cpu", CASE)
    measured_as(store, before, before.tolerances)
    assert wrong(project) == audit_findings(project) == []
    rewritten(path, replace(before, tolerances=Tolerances()), rename=True)
    (text,) = audit_findings(project)
    assert "is gone" in text


@pytest.mark.parametrize("key", ["tolerances", "calibration", "author", "lane", "reruns"])
def test_every_field_of_the_entry_in_force_counts(project: Any, key: str) -> None:
    (path,) = calibrations(project)
    document = json.loads(path.read_text())
    place = document if key == "author" else document["calibrated"][0]
    place[key] = [] if key == "reruns" else ""
    path.unlink()
    AuditLog(store_of(project).folder).write(document)
    assert audit_findings(project) == []
    assert ON_FILE in wrong(project)[0]


def test_calibrate_names_each_rerun_in_golden_and_audit(project: Any) -> None:
    golden = store_of(project).load("cpu", CASE)
    (path,) = calibrations(project)
    (entry,) = json.loads(path.read_text())["calibrated"]
    reruns = golden.calibration["reruns"]
    assert [r["name"] for r in reruns] == [f"random rounding {n}" for n in range(1, 6)]
    assert entry["reruns"] == [
        {"name": r["name"], "trace": r["trace"], "noise": digest(encode_json(r["noise"]))}
        for r in reruns
    ]
    assert len({r["trace"] for r in reruns}) > 1
    largest = largest_of([noise_of_line(r["noise"], golden.tolerances) for r in reruns])
    for name, steps in golden.calibration["noise"].items():
        for step, value in steps.items():
            assert value <= largest[name][int(step)] <= value * 1.01
    assert (path.parent / entry["former"]["file"]).exists()


def test_a_golden_that_moved_to_another_environment_keeps_its_calibration(project: Any) -> None:
    store = store_of(project)
    golden = store.load("cpu", CASE)
    device = {"capability": "9.0", "device": "NVIDIA B300", "image": None, "topology": None}
    moved = replace(golden, trace=replace(golden.trace, provenance={"environment": device}))
    assert calibration_on_file(AuditLog(store.folder), moved) is None, "it was measured elsewhere"
    summary = {
        "lane": "cpu",
        "case": CASE,
        "environment": "NVIDIA B300",
        "tolerances": tolerances_digest(golden.tolerances),
    }
    AuditLog(store.folder).write({"time": "2027", "author": "Ada", "goldens": [summary]})
    assert calibration_on_file(AuditLog(store.folder), moved) is not None


# --- goldens of earlier versions ------------------------------------------------------------


def put_on_file(project: Any, golden: Golden) -> None:
    """An audit file as earlier versions wrote it: of the tolerances alone."""
    for path in calibrations(project):
        path.unlink()
    entry = {
        "lane": "cpu",
        "case": CASE,
        "environment": "",
        "tolerances": tolerances_digest(golden.tolerances),
        "runs": 5,
    }
    time = golden.calibration["time"]
    document = {"time": time, "author": "Ada", "reason": "", "calibrated": [entry]}
    AuditLog(store_of(project).folder).write(document)


def earlier(head: dict[str, Any]) -> None:
    del head["calibration"]["reruns"], head["calibration"]["grains"]


def test_a_golden_of_an_earlier_version_counts_and_is_noted(project: Any) -> None:
    put_on_file(project, edit(project, earlier))
    assert wrong(project) == []
    (note,) = notes(project.root, LANES)
    assert note.startswith("cpu: 1 golden(s)")
    assert note.endswith(CASE)
    for forge in (wide_tolerances, floor, factor):
        before = store_of(project).load("cpu", CASE)
        edit(project, forge)
        assert wrong(project), forge.__name__
        store_of(project).save(before)


def test_nobody_accepts_a_new_calibration_that_names_no_rerun(project: Any, tmp_path: Path) -> None:
    goldens = store_of(project).folder
    judge = Path(shutil.copytree(goldens, tmp_path / "base" / "goldens"))
    put_on_file(project, edit(project, as_of_an_earlier_version))
    assert wrong(project) == [], "by itself it is what an earlier version leaves"
    (loosened,) = find_loosenings(goldens, judge, "cpu")
    assert not loosened.acceptable
    assert "is new and names no rerun" in loosened.text


def test_tolerances_of_the_earliest_version_are_put_on_file_by_a_command(project: Any) -> None:
    edit(project, as_of_the_earliest_version)
    for path in calibrations(project):
        path.unlink()
    project.commit("as it was")
    assert "--adopt --reason" in project.golden("health").out
    assert project.golden("calibrate", CASE, "--adopt").code == 2, "without a reason"
    words = ("calibrate", CASE, "--adopt", "--reason", "measured last year")
    assert project.golden(*words).code == 0
    assert wrong(project) == []
    assert project.golden(*words).code == 2, "once is enough"
    edit(project, wide_tolerances)
    project.commit("wider than what follows")
    refused = project.golden(*words)
    assert refused.code == 2
    assert FOLLOWS in refused.err


def test_malformed_calibrations_are_damaged_goldens(project: Any) -> None:
    with pytest.raises(
        DamagedFileError, match=r"Expected `object`, got `array` - at `\$.calibration`"
    ):
        edit(project, lambda head: head.update(calibration=[1]))


def test_pooling_extends_no_forged_noise(project: Any) -> None:
    edit(project, noise_and_reruns)
    project.commit("forged")
    assert project.golden("check", CASE).code == 3
    refused = project.golden("calibrate", CASE, "--from", str(project.latest_run()))
    assert refused.code == 2
    assert ON_FILE in refused.err
