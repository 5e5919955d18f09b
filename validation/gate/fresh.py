"""Fresh inputs: a run whose seeds the judge has drawn, of the change and of the base.

A change's code runs in the same process as the recorder, so it could hand over the golden's records
and compute nothing. The canary does not find that out: the process can see that a bug is planted.
So a judge draws a number for each check, mixes it into every seed (`validation.running.reseed`) and
runs one case, which it draws too, for one step, by the base's code and by the change's. No earlier
run has had these inputs, so nothing that was recorded helps: the change must compute what the base
computes, at the golden's tolerances.

That holds for what has not changed. Cases whose golden the change replaces are left out: there the
base computes something else, and a reviewer looks at the golden.
"""

from __future__ import annotations

import itertools
import secrets
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from validation.cases import Case
from validation.compare import Divergence, compare
from validation.diagnosis.base_runs import BaseRuns
from validation.files import DamagedFileError
from validation.gate.plan import Check
from validation.gate.verdict import CaseResult, FreshInputs, Verdict
from validation.goldens import Golden
from validation.goldens.golden import environment_of
from validation.progress import Lines, Progress
from validation.running.execution import RunError, run_case
from validation.trace import RecordKind, Trace, load_trace

# A step is enough to compute something, and cheap.
_SETTINGS = {"stop_after": 1}
# Tolerances were measured on the golden's inputs; other inputs may be rounded somewhat worse.
_MARGIN = 8.0
_FLOATING = (RecordKind.CURVE, RecordKind.TENSOR)
_DRAW_BITS = 48
# Cases that take longer than this share of the check, or these seconds, are not drawn.
_SHARE, _SECONDS = 0.1, 20.0
# So many cases are tried until one depends on its seeds.
_MOST = 3


@dataclass(frozen=True)
class _Expected:
    """What a case records on fresh inputs, by the base's code.

    Attributes:
        case: the case.
        golden: of its own inputs, whose tolerances hold.
        trace: what the base recorded.
    """

    case: Case
    golden: Golden
    trace: Trace


class FreshRuns:
    """Runs a drawn case of a judged check with fresh inputs; use it as a context manager.

    Args:
        check: the judged check.
        results: of its cases.
        progress: told what happens.
    """

    def __init__(self, check: Check, results: Sequence[CaseResult], progress: Progress) -> None:
        self._check, self._progress = check, progress
        self._nonce = secrets.randbits(_DRAW_BITS)
        self._drawn = self._draw(results)
        self._pool = ThreadPoolExecutor(1)
        self._temporary = tempfile.TemporaryDirectory(prefix="golden-fresh-")
        self._base: Future[_Expected | str] | None = None

    def __enter__(self) -> FreshRuns:
        self._base = self._pool.submit(self._of_base)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self._temporary.cleanup()

    def result(self) -> FreshInputs:
        """Runs the change's code and compares, once the base's has run."""
        assert self._base is not None
        expected, check = self._base.result(), self._check
        if isinstance(expected, str):
            return FreshInputs("", None, expected)
        case, options = expected.case, replace(check.options, settings=_SETTINGS, nonce=self._nonce)
        self._progress.message(f"[fresh inputs] {case.name}: the change")
        try:
            trace = run_case(case, options, check.plan.root, check.folder.log)
        except RunError as error:
            why = f"the base runs on them, the change does not: {error}"
            return FreshInputs(case.name, False, why)
        first = _first_difference(expected.golden, expected.trace, trace)
        if first is None:
            return FreshInputs(case.name, True, "")
        return FreshInputs(case.name, False, f"first at {first.place}: {_values(first)}")

    def _draw(self, results: Sequence[CaseResult]) -> list[Case]:
        """Some of the cases that passed and whose golden the base has too, in a drawn order."""
        seconds = {r.case: r.seconds for r in results if r.verdict is Verdict.PASS}
        limit = max(_SECONDS, _SHARE * sum(result.seconds for result in results))
        passed = [case for case in self._check.plan.cases if case.name in seconds]
        secrets.SystemRandom().shuffle(passed)
        for quick in (True, False):
            able = (case for case in passed if (seconds[case.name] <= limit) is quick)
            drawn = list(itertools.islice(filter(self._is_old, able), _MOST))
            if drawn:
                return drawn
        return []

    def _of_base(self) -> _Expected | str:
        """The first drawn case whose records depend on the seeds, by the base's code; or why none.

        Raises:
            DamagedFileError: a golden is damaged.
        """
        why = "every golden that was compared is the change's own"
        for case in self._drawn:
            self._progress.message(f"[fresh inputs] {case.name}: the base")
            try:
                trace = self._run_base(case)
            except RunError as error:
                why = f"the base could not be run: {error}"
                continue
            golden = self._check.golden_of(case.name)
            if compare(golden.trace, trace, golden.tolerances).caught is not None:
                return _Expected(case, golden, trace)
            names = ", ".join(case.name for case in self._drawn)
            why = f"by the base's code no record of {names} depends on a seed"
        return why

    def _is_old(self, case: Case) -> bool:
        """Whether the golden that judged the case has the records of the base's."""
        check, lane = self._check, self._check.plan.lane
        if check.base is None:
            return False
        try:
            golden = check.store.nearest_head(lane, case.name, check.environment_of(case.name))
            environment = environment_of(golden["provenance"])
            former = check.base.nearest_head(lane, case.name, environment)
        except DamagedFileError:  # the base has none
            return False
        return bool(golden["files"] == former["files"])

    def _run_base(self, case: Case) -> Trace:
        """The base's trace.

        Raises:
            RunError: it left none.
        """
        check, folder = self._check, Path(self._temporary.name)
        tree = check.plan.sources
        runs = BaseRuns(
            check.plan.root,
            check.plan.lane,
            tree,
            folder,
            folder / "log.txt",
            "the base",
            Lines(lambda line: None),
            settings=_SETTINGS,
            nonce=self._nonce,
        )
        runs.run([case], folder / "traces")
        if runs.problems.get(case.name):
            raise RunError(runs.problems[case.name])
        try:
            return load_trace(folder / "traces" / case.name)
        except DamagedFileError as error:
            raise RunError(str(error)) from error


def _first_difference(golden: Golden, expected: Trace, trace: Trace) -> Divergence | None:
    """The first record that rounding does not explain.

    A discrete record, such as the experts that a token is sent to, may follow from a rounding: it
    counts where every floating record has the base's bits, and where nothing is computed before it.
    """
    comparison = compare(expected, trace, golden.tolerances.times(_MARGIN))
    rounded = any(outcome.error for outcome in comparison.outcomes)
    for found in comparison.divergences:
        if not rounded or found.phase == "data" or found.kind in _FLOATING:
            return found
    return None


def _values(divergence: Divergence) -> str:
    return f"{divergence.expected!r} by the base, {divergence.actual!r} by the change"
