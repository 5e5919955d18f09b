"""Clean runs: which checks are made, and how they are counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import clean_runs
from benchmarks.clean_runs import MOVED, SETTINGS, refuse_other_reference, schedule, summary


def test_a_longer_schedule_begins_with_the_shorter_one() -> None:
    assert schedule("wide", 3)[: len(SETTINGS)] == schedule("wide", 1)
    assert [check.number for check in schedule("native", 2)] == list(range(2 * 12))
    names = [check.setting.name for check in schedule("native", 1)]
    assert names == [setting.name for setting in (*SETTINGS, *MOVED)]


def case(
    verdict: str = "PASS", identical: int = 10, ratio: float | None = 0.0
) -> dict[str, object]:
    return {"verdict": verdict, "compared": 10, "identical": identical, "largest_ratio": ratio}


def entry(check: int, machine: str, cases: dict[str, object], verdict: str = "PASS") -> object:
    place = {"check": check, "setting": SETTINGS[check].name, "machine": machine}
    return {**place, "verdict": verdict, "cases": cases}


def test_checks_are_counted_whole_and_by_setting_machine_and_case() -> None:
    entries = [
        entry(0, "AMD", {"a": case(), "b": case("SKIPPED", ratio=None)}),
        entry(1, "Intel", {"a": case(identical=9, ratio=0.5)}),
        entry(2, "Intel", {"a": case("FAIL", identical=8, ratio=3.0)}, verdict="FAIL"),
        entry(3, "Intel", {}, verdict="none"),
    ]
    found = summary({"wide": entries})["wide"]
    assert (found["checks"], found["alarms"], found["largest_ratio"]) == (4, 2, 3.0)
    assert found["by_machine"]["AMD"]["alarms"] == 0
    assert found["by_machine"]["Intel"]["checks"] == 3
    assert found["by_case"]["a"]["identical"] == 27
    assert found["by_case"]["b"]["checks"] == 0
    assert found["by_setting"][SETTINGS[2].name]["alarms"] == 1
    assert [alarm["check"] for alarm in found["alarmed"]] == [2, 3]
    assert found["alarms_upper_bound_95"] > 0.5


def ledger(path: Path, arithmetic: str, source: str = "s") -> Path:
    state = {"source": source, "goldens": {}, "arithmetic": arithmetic}
    lines = [{"state": state}, entry(0, "AMD", {"a": case()})]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_ledgers_are_pooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledgers = [
        ledger(tmp_path / name, name.partition("-")[0]) for name in ("wide-1", "wide-2", "native-1")
    ]
    output = tmp_path / "result.json"
    words = ["clean_runs", "pool", *map(str, ledgers), "--output", str(output)]
    monkeypatch.setattr("sys.argv", words)
    clean_runs.main()
    found = json.loads(output.read_text())
    assert (found["wide"]["checks"], found["native"]["checks"]) == (2, 1)
    assert found["provenance"]["source"] == "s"


def test_ledgers_of_other_code_are_not_pooled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledgers = [ledger(tmp_path / "1", "wide"), ledger(tmp_path / "2", "wide", source="other")]
    words = ["clean_runs", "pool", *map(str, ledgers), "--output", str(tmp_path / "result.json")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match="several states"):
        clean_runs.main()
    assert not (tmp_path / "result.json").exists()


def test_a_reference_of_other_code_is_refused(tmp_path: Path) -> None:
    refuse_other_reference(tmp_path / "reference", {"source": "a"})
    refuse_other_reference(tmp_path / "reference", {"source": "a"})
    with pytest.raises(SystemExit, match="another state"):
        refuse_other_reference(tmp_path / "reference", {"source": "b"})
