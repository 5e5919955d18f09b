"""A killed update leaves no audit of what never happened: the next one, or health, sees to it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from validation.cases import Case
from validation.config import Lane
from validation.gate.health import examine
from validation.goldens import Golden, GoldenStore
from validation.goldens.acceptance import accept, propose
from validation.goldens.under_way import MARKER, repair
from validation.trace import CurveKey, Trace

from .traces import random_trace

NAMES = ("one", "two", "three")
CASES = {n: Case(name=n, description="", lanes=["cpu"], target="a:b") for n in NAMES}


@pytest.fixture
def store(tmp_path: Path) -> GoldenStore:
    """Three accepted goldens in a repository."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    store = GoldenStore(tmp_path / "goldens")
    update(store, 1.0, "the first")
    return store


def trace(name: str, loss: float) -> Trace:
    """A run of a case."""
    base = replace(random_trace(1), case=name)
    return replace(base, curves={**base.curves, CurveKey("lm_loss"): {1: loss}})


def update(store: GoldenStore, loss: float, reason: str) -> Path:
    """What `golden update` does with three runs."""
    proposals = [propose(store, "cpu", trace(name, loss)) for name in NAMES]
    return accept(store, store.folder.parent, proposals, CASES, reason, ())


def killed(store: GoldenStore, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update whose process is killed: before a golden is saved, or in a rename of a head."""
    pid = os.fork()
    if pid == 0:
        saved: list[str] = []
        save = GoldenStore.save
        chosen, _, inside = at.partition("/")

        def dying(self: GoldenStore, golden: Golden) -> Any:
            if golden.case == chosen and not inside:
                os.kill(os.getpid(), signal.SIGKILL)
            if golden.case == chosen:
                monkeypatch.setattr(
                    Path, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL)
                )
            saved.append(golden.case)
            return save(self, golden)

        monkeypatch.setattr(GoldenStore, "save", dying)
        try:
            update(store, 2.0, "killed")
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def told(store: GoldenStore) -> dict[str, set[str]]:
    """Reason -> cases, of the audit files."""
    audits = (store.folder / "audit").glob("*.json")
    documents = [json.loads(path.read_text()) for path in audits]
    return {d["reason"]: {entry["case"] for entry in d["goldens"]} for d in documents}


def happened(store: GoldenStore) -> dict[str, set[str]]:
    """Reason -> cases, of the goldens."""
    found: dict[str, set[str]] = {}
    for name in NAMES:
        found.setdefault(store.load("cpu", name).accepted["reason"], set()).add(name)
    return found


def kinds(store: GoldenStore) -> list[str]:
    """What health finds of it."""
    found = examine(store.folder.parent, CASES, {}, {"cpu": Lane(name="cpu")})
    return sorted(f.kind for f in found if f.kind in ("interrupted", "leftover"))


@pytest.mark.parametrize("at", ["one", "one/rename", "two", "two/rename", "three"])
@pytest.mark.parametrize("how", ["repair", "the next update"])
def test_an_update_that_was_killed(
    store: GoldenStore, at: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kinds(store) == []
    killed(store, at, monkeypatch)
    done = {name for name in NAMES if store.load("cpu", name).accepted["reason"] == "killed"}
    assert done == set(NAMES[: NAMES.index(at.partition("/")[0])])
    assert "interrupted" in kinds(store)
    if how == "repair":
        with store.lock():
            assert repair(store)
            assert repair(store) == []
        assert told(store).get("killed", set()) == happened(store).get("killed", set()) == done
        assert not (store.folder / MARKER).exists()
        assert "interrupted" not in kinds(store)
        for name in NAMES:
            store.settle("cpu", name)
    else:
        update(store, 3.0, "again")
        assert happened(store) == {"again": set(NAMES)}
        assert told(store) == {
            "the first": set(NAMES),
            **({"killed": done} if done else {}),
            "again": set(NAMES),
        }
    if how == "the next update":
        assert kinds(store) == []


def test_health_says_what_happened_and_what_did_not(
    store: GoldenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(store, "two", monkeypatch)
    (finding,) = [
        f
        for f in examine(store.folder.parent, CASES, {}, {"cpu": Lane(name="cpu")})
        if f.kind == "interrupted"
    ]
    assert "1 golden(s) that were replaced, and of 2 that were not" in finding.text
    assert "golden health --repair" in finding.text


def test_an_update_that_fails_takes_its_audit_back(
    store: GoldenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "goldens/x")

    monkeypatch.setattr(GoldenStore, "save", fail)
    with pytest.raises(OSError, match="No space"):
        update(store, 2.0, "failed")
    assert told(store) == {"the first": set(NAMES)}
    assert kinds(store) == []


def test_a_marker_that_is_damaged_is_a_finding(store: GoldenStore) -> None:
    (store.folder / MARKER).write_text('{"schema": 1}')
    assert kinds(store) == ["interrupted"]


def test_the_command_repairs(golden_project: Any) -> None:
    project = golden_project
    marker = {"schema": 1, "audit": [], "heads": {}}
    goldens = project.root / "goldens"
    names = sorted(path.name for path in (goldens / "audit").iterdir())
    heads = {}
    marker["audit"], marker["heads"] = names, heads
    (goldens / MARKER).write_text(json.dumps(marker))
    (goldens / "cpu/plain_seed/.golden.json.abcd_123").write_text("{")
    found = project.golden("health")
    assert found.code == 1
    assert found.out.count("golden health --repair") == 2
    repaired = project.golden("health", "--repair")
    assert repaired.code == 0, repaired.out + repaired.err
    assert ".golden.json.abcd_123: deleted" in repaired.out
    assert repaired.out.endswith("healthy\n")
    assert project.git("status", "--porcelain") == ""
