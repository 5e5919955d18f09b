"""Workers that misbehave: ranks that hang, exit early or flood, and numbers that are none."""

from __future__ import annotations

from benchmarks.chaos.attempt import Attempt
from benchmarks.chaos.oracle import (
    FAIL,
    PASS,
    Before,
    judge_check,
    judge_order,
    judge_processes,
    judge_store,
)
from benchmarks.chaos.processes import golden
from benchmarks.chaos.repository import MOVED

# Harmless ones must pass, whatever they print or leave.
_HARMLESS = ("flood", "helper")
_BAD = ("hang", "deaf", "endless", "exit-0", "exit-7", "killed")
_NUMBERS = ("nan", "inf", "denormal", "huge")
_HUNG = ("hang", "deaf", "endless")


def misbehave(attempt: Attempt) -> None:
    """A worker does something wrong at its third step."""
    what = attempt.random.choice((*_HARMLESS, *_BAD))
    rank = attempt.random.choice(("", "@0", "@1"))
    state = attempt.states.calm
    root = state.copy(attempt.folder)
    before = Before(root)
    attempt.did = f"check: a worker{rank.replace('@', ' of rank ')}: {what}"
    hurry = {"CHAOS_TIMEOUT": "3"} if what in _HUNG else {}
    ended = golden(root, "check", CHAOS_WORKER=what + rank, **hurry)
    judge_check(attempt, ended, PASS if what in _HARMLESS else FAIL)
    judge_processes(attempt)
    judge_store(attempt, state, root, before)
    judge_order(attempt, root)


def numbers(attempt: Attempt) -> None:
    """A curve has a NaN, an infinity, a denormal or a huge number at its fourth step.

    In the run alone it is a change. In run and golden, a number is one like others; what is not
    finite never passes.
    """
    what = attempt.random.choice(_NUMBERS)
    rank = attempt.random.choice(("", "@1"))
    accepted = attempt.random.random() < 0.5
    root = attempt.states.calm.copy(attempt.folder)
    attempt.did = f"check: {what}{rank.replace('@', ' on rank ')} in a curve"
    words = {"CHAOS_WORKER": what + rank}
    if not accepted:
        judge_check(attempt, golden(root, "check", **words), FAIL)
    else:
        attempt.did += " of run and golden"
        cases = MOVED[2:] if rank else MOVED
        if attempt.expect(golden(root, "update", "--reason", what, *cases, **words), PASS):
            finite = what in ("denormal", "huge")
            judge_check(attempt, golden(root, "check", **words), PASS if finite else FAIL)
            judge_check(attempt, golden(root, "check"), FAIL)
    judge_processes(attempt)


KINDS = {"workers": misbehave, "numbers": numbers}
