"""Commands that are stopped: kill -9, SIGTERM and Ctrl-C, at any moment or at any operation."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.chaos.attempt import LEFT, LOST, Attempt
from benchmarks.chaos.oracle import (
    HARDWARE,
    INVALID,
    PASS,
    REFUSED,
    REPAIRED,
    UNFIT,
    Before,
    judge_audits,
    judge_check,
    judge_health,
    judge_order,
    judge_processes,
    judge_store,
    passes,
    stray_files,
)
from benchmarks.chaos.processes import Running, descendants, golden
from benchmarks.chaos.repository import (
    CASES,
    LANE,
    MOVED,
    State,
    States,
    git,
    trace_digest,
)
from validation.files import DamagedFileError
from validation.goldens import GoldenStore

_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_POLITE_SECONDS = 15.0


@dataclass(frozen=True)
class Scenario:
    """A command that is stopped.

    Attributes:
        state: of the repository that it works on.
        words: of its command line.
    """

    state: Callable[[States], State]
    words: Callable[[State], list[str]]


SCENARIOS = {
    "check": Scenario(lambda s: s.calm, lambda s: ["check"]),
    "update": Scenario(lambda s: s.changed, lambda s: ["update", "--reason", "stopped", *MOVED]),
    "accept": Scenario(
        lambda s: s.changed,
        lambda s: ["update", "--from", str(s.run), "--reason", "stopped", *MOVED],
    ),
    "calibrate": Scenario(lambda s: s.calm, lambda s: ["calibrate", "--runs", "3"]),
    "rebase": Scenario(lambda s: s.merging, lambda s: ["rebase"]),
}


def stop(attempt: Attempt, command: str) -> None:
    """Stops a command, then runs it again."""
    scenario, random = SCENARIOS[command], attempt.random
    state = scenario.state(attempt.states)
    words = scenario.words(state)
    number = random.choice(_SIGNALS)
    fraction, group, at_operation = random.random(), random.random() < 0.5, random.random() < 0.7
    operations, seconds = _measured(attempt, command)
    root = state.copy(attempt.folder)
    before = Before(root)
    if at_operation:
        which = 1 + int(fraction * operations)
        attempt.did = f"{command}: {number.name} at operation {which} of {operations}"
        running = Running(root, words, stop=(number, which, attempt.folder / "count"))
    else:
        attempt.did = f"{command}: {number.name} after {fraction:.0%} of its time"
        attempt.did += " to its whole group" if group else ""
        running = Running(root, words)
        with contextlib.suppress(Exception):
            running.process.wait(1.1 * fraction * seconds)
        running.signal(number, group=group)
    ended = running.wait(_POLITE_SECONDS)
    polite = (128 + number, 130) if number != signal.SIGKILL else ()
    attempt.expect(ended, PASS, -number, *polite)
    judge_processes(attempt)
    judge_store(attempt, state, root, before)
    judge_audits(attempt, root, before)
    merging = state is attempt.states.merging
    judge_health(attempt, root, {*REPAIRED, *(("damaged", "stale") if merging else ())})
    if number != signal.SIGKILL:
        for name in stray_files(root):
            attempt.blame(LEFT, f"{name}: left by a command that was asked to end")
    if attempt.wrong:
        return
    (root / ".git" / "index.lock").unlink(missing_ok=True)  # as git tells its user to
    again(attempt, command, state, root)


def again(attempt: Attempt, command: str, state: State, root: Path) -> None:
    """A stopped command, run again, does its work and leaves everything in order."""
    words = SCENARIOS[command].words(state)
    if command in ("update", "accept"):
        words = words[: -len(MOVED)] + _still_to_move(state, root)
    if not attempt.expect(golden(root, *words), PASS):
        return
    for case in CASES:
        with contextlib.suppress(DamagedFileError):
            found = GoldenStore(root / "goldens").load(LANE, case).trace
            if trace_digest(found) != trace_digest(state.expected[case]):
                attempt.blame(LOST, f"golden {case}: not what the command, run again, accepted")
    judge_order(attempt, root)
    if state is attempt.states.merging:
        left = git(root, "diff", "--name-only", "--diff-filter=U").split()
        if left:
            attempt.blame(LEFT, f"still in conflict: {', '.join(left)}")
    passes(attempt, state, root)
    judge_processes(attempt)


def kill_worker(attempt: Attempt) -> None:
    """Kills any process below a check, as a kernel that runs out of memory does."""
    state, random = attempt.states.calm, attempt.random
    root = state.copy(attempt.folder)
    before, fraction, pick = Before(root), random.random(), random.random()
    _, seconds = _measured(attempt, "check")
    attempt.did = f"check: kill -9 of a process below it after {fraction:.0%} of its time"
    running = Running(root, ["check"])
    until = time.monotonic() + fraction * seconds
    while time.monotonic() < until and running.process.poll() is None:
        time.sleep(0.005)
    below = descendants(running.process.pid)
    if below:
        with contextlib.suppress(ProcessLookupError):
            os.kill(below[int(pick * len(below))], signal.SIGKILL)
    judge_check(attempt, running.wait(), PASS, HARDWARE, REFUSED, INVALID, UNFIT)
    judge_processes(attempt)
    judge_store(attempt, state, root, before)
    judge_order(attempt, root)


_measurements: dict[str, tuple[int, float]] = {}


def _measured(attempt: Attempt, command: str) -> tuple[int, float]:
    """How many operations a command has, and how many seconds it takes."""
    if command not in _measurements:
        state = SCENARIOS[command].state(attempt.states)
        folder = attempt.folder / "measured"
        folder.mkdir()
        root, count = state.copy(folder), folder / "count"
        ended = Running(root, SCENARIOS[command].words(state), stop=(0, 0, count)).wait()
        if not attempt.expect(ended, PASS):
            return 1, 1.0
        _measurements[command] = int(count.read_text()), ended.seconds
        shutil.rmtree(folder)
    return _measurements[command]


def _still_to_move(state: State, root: Path) -> list[str]:
    """The declarations that an acceptance still needs after some goldens were accepted."""
    words = []
    for case in CASES:
        trace = GoldenStore(root / "goldens").load(LANE, case).trace
        if trace_digest(trace) != trace_digest(state.expected[case]):
            words += ["--expect", f"{case}:*:any"]
    return words


KINDS = {
    **{f"stop-{command}": partial(stop, command=command) for command in SCENARIOS},
    "kill-worker": kill_worker,
}
