"""Draws mutants until enough of them stand on lines that some case runs, and tries each.

What became of each is kept at once, so that an interruption costs only what was under way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from validation.mutation.mutants import Mutant
from validation.mutation.opinion import UnitTests
from validation.mutation.score import Score, Tried
from validation.mutation.trial import Judges, Outcome
from validation.power.ledger import Ledger, StateError
from validation.running.execution import close_parents


class Kept:
    """Outcomes by mutant, in a ledger.

    Args:
        path: of the ledger.
        state: of the code, the goldens and the machine; outcomes of another one are thrown away.
        resume: whether earlier outcomes count; otherwise mutants are tried anew.
    """

    def __init__(self, path: Path, state: Mapping[str, Any], *, resume: bool) -> None:
        if path.exists() and not resume:
            path.unlink()
        try:
            self._ledger = Ledger(path, state)
        except StateError:
            path.unlink()
            self._ledger = Ledger(path, state)
        self._found = {
            entry["mutant"]: Outcome(**{k: v for k, v in entry.items() if k != "mutant"})
            for entry in self._ledger.entries
        }

    def outcome(self, mutant: Mutant) -> Outcome | None:
        """What became of a mutant, if it was tried before."""
        return self._found.get(mutant.id)

    def keep(self, mutant: Mutant, outcome: Outcome) -> None:
        """Keeps what became of a mutant."""
        self._ledger.append({"mutant": mutant.id, **asdict(outcome)})


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """What is tried.

    Attributes:
        judges: the cases.
        tests: the unit tests, for survivors; None asks nobody.
        covered: mutants on lines that some case runs, to try.
        minutes: after which no further mutant is begun; None is until all are tried.
        jobs: mutants at a time.
        kept: what became of earlier ones.
        tell: told what happens.
    """

    judges: Judges
    tests: UnitTests | None
    covered: int
    minutes: float | None
    jobs: int
    kept: Kept
    tell: Callable[[str], None]


def run_campaign(campaign: Campaign, mutants: Iterator[Mutant]) -> Score:
    """Tries mutants in their order.

    Args:
        campaign: what judges the mutants, how many are tried, and for how long.
        mutants: read until enough of them are on lines that some case runs.

    Returns:
        The mutants and their outcomes, without those that were not begun in time.

    Raises:
        RefusedError: a case does not pass without a mutant.
    """
    until = None if campaign.minutes is None else time.monotonic() + 60 * campaign.minutes
    chosen, covered = [], 0
    for mutant in mutants:
        if covered == campaign.covered:
            break
        covered += bool(mutant.cases)
        chosen.append(mutant)
    telling, ending = threading.Lock(), threading.Event()
    root = campaign.judges.root

    def tell(text: str) -> None:
        with telling:
            campaign.tell(text)

    def attempt(mutant: Mutant) -> Tried | None:
        if not mutant.cases:
            return Tried(mutant, Outcome(), mutant.diff(root))
        outcome = campaign.kept.outcome(mutant)
        asked = campaign.tests is None or outcome is None or outcome.killed
        if outcome is None or not (asked or outcome.tests is not None or outcome.note):
            if ending.is_set() or (until is not None and time.monotonic() > until):
                return None
            outcome = campaign.judges.kill(mutant) if outcome is None else outcome
            if campaign.tests is not None and not outcome.killed:
                tests, note = campaign.tests.kill(mutant)
                outcome = replace(outcome, tests=tests, note=note)
            if not ending.is_set():
                campaign.kept.keep(mutant, outcome)
        verdict = f"killed by {outcome.case}: {outcome.how}" if outcome.killed else "SURVIVED"
        if outcome.tests:
            verdict += ", killed by the tests"
        tell(f"{mutant.name}:{mutant.edit.line} {mutant.edit.operator}: {verdict}")
        return Tried(mutant, outcome, mutant.diff(root))

    with ThreadPoolExecutor(campaign.jobs) as pool:
        try:
            tried = list(pool.map(attempt, chosen))
        except BaseException:
            ending.set()
            pool.shutdown(wait=False, cancel_futures=True)
            close_parents()  # so that the threads' runs end now
            raise
    return Score([one for one in tried if one is not None], with_tests=campaign.tests is not None)
