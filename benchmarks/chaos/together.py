"""Two commands at once on one repository."""

from __future__ import annotations

import time

from benchmarks.chaos.attempt import LOST, WRONG, Attempt
from benchmarks.chaos.oracle import (
    FAIL,
    INVALID,
    PASS,
    REFUSED,
    Before,
    judge_check,
    judge_order,
    judge_processes,
    judge_store,
    passes,
)
from benchmarks.chaos.processes import Running
from benchmarks.chaos.repository import CASES, LANE, MOVED, trace_digest
from validation.goldens import GoldenStore


def two_checks(attempt: Attempt) -> None:
    """Both pass, each in a run folder of its own."""
    state = attempt.states.calm
    root = state.copy(attempt.folder)
    before, delay = Before(root), attempt.random.choice((0.0, attempt.random.random()))
    attempt.did = f"two checks, {delay:.2f} s apart"
    runs = len(list((root / "runs").glob("*/verdict.json")))
    both = [Running(root, ["check"])]
    time.sleep(delay)
    both.append(Running(root, ["check"]))
    for running in both:
        judge_check(attempt, running.wait(), PASS)
    if len(list((root / "runs").glob("*/verdict.json"))) != runs + 2:
        attempt.blame(LOST, "not every check left a run folder")
    judge_processes(attempt)
    judge_store(attempt, state, root, before)
    judge_order(attempt, root)


def two_writers(attempt: Attempt) -> None:
    """Acceptances and calibrations that meet: one of them may be refused, none is half done."""
    state, random = attempt.states.changed, attempt.random
    root = state.copy(attempt.folder)
    before = Before(root)
    update = ["update", "--reason", "first", *MOVED]
    accept = ["update", "--from", str(state.run), "--reason", "second", *MOVED]
    first = random.choice((update, accept))
    second = random.choice((update, accept, ["calibrate", "--runs", "3"], ["check"]))
    delay = random.choice((0.0, random.random()))
    attempt.did = f"{' '.join(first[:2])} and {' '.join(second[:2])}, {delay:.2f} s apart"
    both = [Running(root, first)]
    time.sleep(delay)
    both.append(Running(root, second))
    ended = [running.wait() for running in both]
    attempt.expect(ended[0], PASS, REFUSED)
    # Goldens that are replaced while a check runs make it INVALID.
    attempt.expect(ended[1], PASS, REFUSED, *((FAIL, INVALID) if second == ["check"] else ()))
    accepted = [one for one in ended if one.words[0] == "update" and one.code == PASS]
    if not accepted:
        attempt.blame(WRONG, f"no update was accepted: {' / '.join(e.tail() for e in ended)}")
    judge_processes(attempt)
    judge_store(attempt, state, root, before)
    for case in CASES if accepted else ():
        found = trace_digest(GoldenStore(root / "goldens").load(LANE, case).trace)
        if found != trace_digest(state.expected[case]):
            attempt.blame(LOST, f"golden {case}: the acceptance was undone")
    audits = len(list((root / "goldens" / "audit").glob("*.json")))
    if audits < len(accepted):
        attempt.blame(LOST, "an acceptance has no audit file")
    judge_order(attempt, root)
    passes(attempt, state, root)


KINDS = {"two-checks": two_checks, "two-writers": two_writers}
