"""`golden rebase --env`: a new environment is accepted only if nothing else has changed."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from validation.cases import Case, Fault
from validation.compare import Tolerances
from validation.gate.rebase import Rebase, _tighter, rebase_environment
from validation.goldens import Golden, GoldenStore
from validation.goldens.acceptance import RefusedError
from validation.running.execution import RunError
from validation.running.reach import case_source_digest
from validation.trace import CurveKey, Trace, save_trace

from .traces import TOLERANCE, random_trace, tolerances_of

CASE = Case(name="tiny", description="a case", lanes=["cpu"], target="a:b")
FAULT = Fault(id="f", category="c", component="c", imitates="", plant="a:f", case="tiny")


class Scene:
    """A repository with one golden, and runs of it in two environments."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        subprocess.run(["git", "init", "-q", str(root)], check=True)
        (root / "train.py").write_text("pass\n")
        self.store = GoldenStore(root / "goldens")
        self.golden = self.trace(torch="2.11")
        self.store.save(
            Golden(
                lane="cpu",
                trace=self.golden,
                case_digest=CASE.digest,
                accepted={"reason": "first"},
                tolerances=tolerances_of(self.golden),
            )
        )
        self.faulty = moved(self.golden, 1e4)
        self.faults = [FAULT]
        self.planted: list[tuple[str, int | None]] = []

    def trace(self, torch: str, **provenance: Any) -> Trace:
        return replace(
            random_trace(1),
            provenance={
                "source_digest": case_source_digest(CASE, self.root),
                "case_digest": CASE.digest,
                "environment": {"lane": "cpu", "torch": torch},
                **provenance,
            },
        )

    def rebase(
        self, old: Trace, new: Trace, here: Trace | None = None, lane: str | None = None
    ) -> list[Rebase]:
        folders = []
        for name, trace in (("old", old), ("new", new)):
            save_trace(trace, self.root / "runs" / name / "traces" / "tiny")
            folders.append(self.root / "runs" / name)

        def rerun(case: Case, fault: str | None, steps: int | None = None, /) -> Trace:
            if fault is None:
                return here or new
            self.planted.append((fault, steps))
            if fault.endswith("crash"):
                raise RunError("it crashed\nat the end")
            return self.faulty if steps is None else self.faulty.up_to(steps)

        cases, runs = {"tiny": CASE}, (folders[0], folders[1])
        return rebase_environment(self.store, self.root, cases, self.faults, runs, [], rerun, lane)


def moved(trace: Trace, tolerances: float) -> Trace:
    """Every curve a few tolerances higher."""
    factor = 1 + tolerances * TOLERANCE
    curves = {n: {s: v * factor for s, v in c.items()} for n, c in trace.curves.items()}
    return replace(trace, curves=curves)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "repository")


def test_small_drift_in_a_new_environment_is_accepted(scene: Scene) -> None:
    new = moved(scene.trace(torch="2.12"), 3)
    scene.faulty = moved(scene.trace(torch="2.12"), 1e4)
    (rebased,) = scene.rebase(scene.golden, new)
    assert rebased.reason == "environment: torch 2.11 -> 2.12"
    assert rebased.proposal.trace.curves == new.curves


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("drift", "more than calibrated growth"),
        ("code", "the code has changed, too"),
        ("same environment", "the same environment"),
        ("elsewhere", "run this in the new environment"),
        ("blind", "blind to fault f"),
        ("tree", "another source tree"),
    ],
)
def test_everything_else_is_refused(scene: Scene, what: str, text: str) -> None:
    old, new = scene.golden, moved(scene.trace(torch="2.12"), 3)
    here = None
    if what == "drift":
        new = moved(new, 30)
    elif what == "code":
        old = moved(old, 2)
    elif what == "same environment":
        new = scene.trace(torch="2.11")
    elif what == "elsewhere":
        here = scene.trace(torch="2.13")
    elif what == "blind":
        scene.faulty = new
    elif what == "tree":
        new = scene.trace(torch="2.12", source_digest="0")
    with pytest.raises(RefusedError, match=text):
        scene.rebase(old, new, here)


def test_faults_that_say_nothing_are_no_reason_to_refuse(scene: Scene) -> None:
    # Within what the old golden allowed as well: nobody caught this before.
    scene.faulty = moved(scene.golden, 0.5)
    scene.faults = [
        replace(FAULT, id="same", equivalent="it changes nothing"),
        replace(FAULT, id="elsewhere", case="another"),
        replace(FAULT, id="other-lane", lanes=["h200"]),
        replace(FAULT, id="crash", plant="a:crash"),
        FAULT,
    ]
    new = moved(scene.trace(torch="2.12"), 0.4)
    (rebased,) = scene.rebase(scene.golden, new)
    assert scene.planted == [("a:crash", None), ("a:f", None)]
    assert "fault crash could not be planted: it crashed" in "\n".join(rebased.shown)
    assert "fault f was not caught before" in "\n".join(rebased.shown)
    assert rebased.proven == {}


def test_a_record_that_is_lost_is_no_catch(scene: Scene) -> None:
    new = moved(scene.trace(torch="2.12"), 3)
    curves = {name: c for name, c in new.curves.items() if name != CurveKey("lm_loss")}
    scene.faulty = replace(new, curves=curves)
    # The golden caught it: the other curves are three tolerances from what it holds.
    with pytest.raises(RefusedError, match="blind to fault f"):
        scene.rebase(scene.golden, new)


def test_planted_runs_prove_canaries_of_the_moved_golden(scene: Scene) -> None:
    scene.faults = [
        replace(FAULT, id="plain", canary_steps=2),
        replace(FAULT, id="no-canary", canary_steps=2, canary=False),
        replace(FAULT, id="whole"),
    ]
    new = moved(scene.trace(torch="2.12"), 3)
    (rebased,) = scene.rebase(scene.golden, new)
    assert set(rebased.proven) == {"plain"}
    assert rebased.proven["plain"].steps == 2
    assert rebased.proven["plain"].margin == pytest.approx(1e4 - 3, rel=0.01)
    assert scene.planted == [("a:f", 2), ("a:f", 2), ("a:f", None)]
    # One that is caught, but not plainly, moves the golden and is no canary.
    scene.faulty = moved(scene.golden, 8)
    (rebased,) = scene.rebase(scene.golden, new)
    assert rebased.proven == {}


def test_the_lane_is_the_runs(scene: Scene) -> None:
    new = moved(scene.trace(torch="2.12"), 3)
    assert scene.rebase(scene.golden, new, lane="cpu")
    with pytest.raises(RefusedError, match="no run of lane h200, but of cpu"):
        scene.rebase(scene.golden, new, lane="h200")
    other = replace(new, provenance={**new.provenance, "environment": {"lane": "h200"}})
    save_trace(other, scene.root / "runs" / "new" / "traces" / "other")
    with pytest.raises(RefusedError, match="lanes cpu, h200: choose with --lane"):
        scene.rebase(scene.golden, new)


def test_of_two_sides_the_tighter_golden_is_kept_whole() -> None:
    def golden(**classes: float) -> Golden:
        trace = random_trace(1)
        tolerances = Tolerances({name: {1: value} for name, value in classes.items()})
        return Golden(lane="cpu", trace=trace, case_digest="", accepted={}, tolerances=tolerances)

    tight, loose, mixed = golden(a=1.0, b=1.0), golden(a=2.0, b=1.0), golden(a=0.5, b=9.0)
    assert _tighter([]) is None
    assert _tighter([loose, tight]) is tight
    assert _tighter([tight, loose]) is tight
    assert _tighter([mixed, tight]) is tight, "twice as wide in one class, not nine times"
    assert _tighter([tight, replace(tight, lane="gpu")]) is tight
