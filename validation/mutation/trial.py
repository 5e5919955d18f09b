"""Runs a mutant through the cases that run its line, until one of them kills it.

A mutant is killed where `golden check` would not pass: records differ beyond the golden's
tolerances, or the run fails or hangs. An invariant, which holds two cases' runs together, does not
count here. Before a case judges, its run without a mutant must pass.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from validation.cases import Case
from validation.gate.check import compare_with
from validation.gate.verdict import Verdict
from validation.goldens import Golden
from validation.goldens.acceptance import RefusedError
from validation.mutation import planted
from validation.mutation.mutants import Mutant
from validation.running.execution import RunError, RunOptions, close_own_parents, run_case
from validation.running.instruments import instrumented
from validation.running.threads import threads_of

# A mutant may never end. So many times what the case took, after the imports.
_PATIENCE = 10.0
_LEAST_SECONDS = 120.0


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes:
        case: that killed it; empty where none did.
        how: what the case said: the first record that differs, or how the run ended.
        tests: whether the unit tests kill a survivor; None where nobody asked, or they cannot say.
        note: why they cannot.
    """

    case: str = ""
    how: str = ""
    tests: bool | None = None
    note: str = ""

    @property
    def killed(self) -> bool:
        """By a case."""
        return bool(self.case)


@dataclass(frozen=True, kw_only=True)
class Judges:
    """The cases that judge, and what they expect.

    Attributes:
        root: the checkout.
        lane: of the goldens.
        cases: by name.
        goldens: by case; a case without one cannot kill.
        seconds: how long each case took when it was measured.
        environment: variables that share the cores among the runs.
        log: beside it, each thread's runs print into a file of its own.
    """

    root: Path
    lane: str
    cases: Mapping[str, Case]
    goldens: Mapping[str, Golden]
    seconds: Mapping[str, float]
    environment: Mapping[str, str]
    log: Path
    _proven: dict[str, str] = field(default_factory=dict)
    _proving: threading.Lock = field(default_factory=threading.Lock)

    def prove(self, name: str) -> None:
        """Has a case pass without a mutant, once.

        Args:
            name: of the case.

        Raises:
            RefusedError: it does not; it would kill everything.
        """
        with self._proving:
            if name not in self._proven:
                self._proven[name] = self._judged(name, {})
            problem = self._proven[name]
        if problem:
            raise RefusedError(
                f"case {name} does not pass without a mutant ({problem}): golden check {name}"
            )

    def kill(self, mutant: Mutant) -> Outcome:
        """Plants a mutant in run after run, until a case kills it.

        Args:
            mutant: to plant; of its cases, those with a golden are run.

        Returns:
            Which case killed it, and how; empty where none did.

        Raises:
            RefusedError: a case does not pass without it.
        """
        able = [name for name in mutant.cases if name in self.goldens]
        with tempfile.TemporaryDirectory(prefix="golden-mutant-") as folder:
            look = planted_in(self.root, mutant, Path(folder))
            try:
                for name in able:
                    self.prove(name)
                    problem = self._judged(name, look)
                    if problem:
                        return Outcome(name, problem)
            finally:
                close_own_parents()
        return Outcome()

    def _judged(self, name: str, variables: Mapping[str, str]) -> str:
        """Why the gate would not pass a run of a case; empty where it would."""
        patience = max(_LEAST_SECONDS, _PATIENCE * self.seconds.get(name, 0.0))
        case = self.cases[name]
        case = replace(case, timeout=min(case.timeout, patience))
        environment = {**threads_of(case, self.environment), **variables}
        options = RunOptions(lane=self.lane, environment=environment)
        # An error quotes the end of its log, which no other run may write into meanwhile.
        log = self.log.with_name(f"log-{threading.current_thread().name}.txt")
        try:
            trace = run_case(case, options, self.root, log)
        except RunError as error:
            lines = str(error).splitlines()
            return f"{lines[0]}: {lines[-1]}" if len(lines) > 1 else lines[0]
        comparison, verdict, message = compare_with(self.goldens[name], trace)
        if verdict is Verdict.PASS:
            return ""
        if comparison.divergences:
            first = comparison.divergences[0]
            place = ".".join(filter(None, (first.module, first.tensor)))
            return f"step {first.step}, {first.phase}: {place}"
        return message


def planted_in(root: Path, mutant: Mutant, folder: Path) -> dict[str, str]:
    """Variables with which Python imports a mutant in the place of its file.

    Args:
        root: the checkout, which is not touched.
        mutant: to plant.
        folder: receives its text.

    Returns:
        Value by variable, for `RunOptions.environment`.
    """
    text = folder / "mutant.py"
    text.write_bytes(mutant.text(root))
    return instrumented(
        Path(planted.__file__),
        **{planted.FILE: str(root / mutant.name), planted.TEXT: str(text)},
    )
