"""What a kept result of the kill matrix depends on, and that it is what was kept."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from validation.cases import Fault
from validation.compare import Divergence
from validation.power.ledger import Ledger, StateError, own_files
from validation.power.matrix import Harmless, Kill, Pass, Sighting
from validation.power.results import Results
from validation.trace import RecordKind

FAULT = Fault(
    id="bug", category="c", component="x", imitates="y", plant="planted_one:bug", case="case"
)
FIRST = Divergence(
    step=1, phase="forward", module="m", tensor="t", relative_error=0.5, kind=RecordKind.TENSOR
)
KILL = Kill(FAULT, (Sighting("case", FIRST),), "other", "", None)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository of three modules of plants; the second imports the third."""
    (tmp_path / "planted_one.py").write_text("def bug(): ...\n")
    (tmp_path / "planted_two.py").write_text("from planted_three import helper\n")
    (tmp_path / "planted_three.py").write_text("def helper(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("planted_one", "planted_two", "planted_three"):
        sys.modules.pop(name, None)


def results(folder: Path, **state: str) -> Results:
    return Results(folder / "kept.jsonl", state, lane="cpu", resume=True)


def test_what_is_kept_comes_back(modules: Path) -> None:
    harmless = Harmless({"benign": "planted_two:f"}, "case", 3, "what")
    survivor = Kill(replace(FAULT, id="s", case="other"), (), "other", "nothing differs", False)
    kept = results(modules)
    kept.keep_kill(KILL)
    kept.keep_kill(survivor)
    kept.keep_passes(harmless, [Pass("benign", False, "why", "what")])
    again = results(modules)
    assert again.kill(FAULT) == KILL
    assert again.kill(survivor.fault) == survivor
    assert again.passes(harmless) == [Pass("benign", False, "why", "what")]
    assert again.passes(replace(harmless, steps=4)) is None


def test_a_result_depends_on_what_is_run_and_not_on_how_it_is_told(modules: Path) -> None:
    results(modules).keep_kill(KILL)
    told = replace(FAULT, id="z", component="z", imitates="z", category="z")
    found = results(modules).kill(told)
    assert found is not None
    assert found.fault is told
    for other in (
        {"case": "b"},
        {"canary_steps": 2},
        {"equivalent": "e"},
        {"plant": "planted_two:f"},
    ):
        assert results(modules).kill(replace(FAULT, **other)) is None
    (modules / "planted_two.py").write_text("import planted_three\n")
    assert results(modules).kill(FAULT) is not None
    (modules / "planted_one.py").write_text("def bug(): pass\n")
    assert results(modules).kill(FAULT) is None


def test_results_of_another_state_are_thrown_away(modules: Path) -> None:
    results(modules, source="a").keep_kill(KILL)
    assert results(modules, source="a").kill(FAULT) == KILL
    assert results(modules, source="b").kill(FAULT) is None
    assert results(modules, source="a").kill(FAULT) is None


def test_files_that_others_need_are_nobodys_own(modules: Path) -> None:
    plants = ["planted_one:f", "planted_two:f", "planted_three:f", "json:loads", "no_such_module:f"]
    assert own_files(modules, plants, []) == ["planted_one.py", "planted_two.py"]
    assert own_files(modules, plants, ["planted_one:run"]) == ["planted_two.py"]


def test_a_ledger_is_of_one_state_and_drops_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, {"source": "a"})
    ledger.append({"run": 1})
    ledger.append({"run": 2})
    path.write_text(path.read_text()[:-5])
    assert Ledger(path, {"source": "a"}).entries == [{"run": 1}]
    with pytest.raises(StateError, match="other code"):
        Ledger(path, {"source": "b"})
