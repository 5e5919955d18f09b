"""A command that is stopped, or that meets another one, leaves nothing half done or undone."""

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from validation.cases import Case
from validation.cli.program import main
from validation.compare import Tolerances
from validation.files import unfinished_writes, write_atomically
from validation.goldens import Golden, GoldenStore
from validation.goldens.acceptance import accept, propose
from validation.goldens.store import StaleGoldenError
from validation.trace import CurveKey, Trace

from .traces import random_trace, tolerances_of

CASE = Case(name="tiny", description="", lanes=["cpu"], target="a:b")


def golden(trace: Trace) -> Golden:
    return Golden(
        lane="cpu",
        trace=trace,
        case_digest=CASE.digest,
        accepted={"time": "now", "author": "ada", "reason": "first"},
        tolerances=tolerances_of(trace),
    )


@pytest.fixture
def store(tmp_path: Path) -> GoldenStore:
    store = GoldenStore(tmp_path / "goldens")
    store.save(golden(random_trace(1)))
    return store


def moved(trace: Trace, value: float) -> Trace:
    return replace(trace, curves={**trace.curves, CurveKey("lm_loss"): {1: value}})


def _save_and_be_stopped(store: GoldenStore, other: Golden, number: int) -> None:
    with store.lock():
        os.kill(os.getpid(), number)
        store.save(other)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_an_acceptance(store: GoldenStore, number: int) -> None:
    before = signal.signal(number, signal.default_int_handler)
    other = golden(moved(random_trace(1), 7.0))
    try:
        with pytest.raises(KeyboardInterrupt):
            _save_and_be_stopped(store, other, number)
    finally:
        signal.signal(number, before)
    assert store.load("cpu", "tiny").trace == other.trace
    assert unfinished_writes(store.folder) == []


def test_the_next_acceptance_sweeps_what_a_killed_one_left(store: GoldenStore) -> None:
    for name in ("audit/.20260101T000000-0123abcd.json.ab_12cd3", "cpu/tiny/.golden.json.x0y1z2w3"):
        (store.folder / name).parent.mkdir(exist_ok=True)
        (store.folder / name).write_text("{")
    kept = store.folder / "cpu" / ".gitkeep"
    kept.touch()
    assert len(unfinished_writes(store.folder)) == 2
    with store.lock():
        pass
    assert unfinished_writes(store.folder) == []
    assert kept.exists()


def test_a_name_of_a_killed_write_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    if (pid := os.fork()) == 0:
        write_atomically(tmp_path / "golden.json", b"{}")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert unfinished_writes(tmp_path) == list(tmp_path.iterdir())
    assert len(unfinished_writes(tmp_path)) == 1


@pytest.mark.parametrize("kind", ["replaced", "calibrated", "new"])
def test_an_acceptance_never_undoes_one_that_came_between(store: GoldenStore, kind: str) -> None:
    trace = random_trace(1)
    case = CASE
    if kind == "new":
        trace, case = replace(trace, case="fresh"), replace(CASE, name="fresh")
    proposal = propose(store, "cpu", moved(trace, 7.0))
    between = golden(moved(trace, 5.0) if kind == "replaced" else trace)
    if kind == "calibrated":
        between = replace(between, tolerances=Tolerances({"curve:lm_loss": {1: 0.25}}))
    with store.lock():
        store.save(between)
    with pytest.raises(StaleGoldenError, match=f"cpu/{case.name}: another process"):
        accept(store, store.folder.parent, [proposal], {case.name: case}, "why", [])
    assert store.load("cpu", case.name).trace == between.trace
    assert not (store.folder / "audit").exists(), "no audit of what did not happen"


def test_a_golden_with_a_nan_is_what_it_was(store: GoldenStore) -> None:
    store.save(golden(moved(random_trace(1), float("nan"))))
    found = store.load("cpu", "tiny")
    store.refuse_stale("cpu", "tiny", "", found)
    with pytest.raises(StaleGoldenError):
        store.refuse_stale("cpu", "tiny", "", golden(random_trace(1)))


def test_a_command_takes_sigterm_for_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_: object) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(5)
        return 0

    monkeypatch.setattr("validation.cli.upkeep.health", stopped)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["health"]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
