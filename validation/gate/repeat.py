"""Whether a failure repeats itself: a failed case runs again, to the step that failed.

A change of the code does the same thing each time. A bit that flipped in memory does not, nor does
a kernel whose result depends on timing or on numbers that nobody seeded. So three runs tell them
apart:

| runs | verdict |
| --- | --- |
| the second is the first | FAIL: the code |
| one of three stands alone | HARDWARE: this machine went wrong once |
| no two are alike | NONDETERMINISTIC: the code, or a library, does not repeat itself |

Where a case is deterministic or runs in wide arithmetic, alike means bit for bit; elsewhere, within
the golden's tolerances. A machine that goes wrong in the same way each time looks like a change of
the code; only another machine can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from validation.cases import Case
from validation.compare import Divergence, Tolerances, compare
from validation.compare.compare import one_trace_only
from validation.compare.tolerance import EXACT
from validation.files import DamagedFileError
from validation.gate.plan import Check
from validation.gate.verdict import CaseResult, Repeat, Verdict
from validation.progress import Progress
from validation.running.execution import RunError, close_parents, run_case
from validation.shortage import run_lacked
from validation.trace import Trace

# A change of the code fails in many cases: once so many have repeated themselves, the others are
# not run again.
_ENOUGH = 3
# A run that failed after more than this share of its case's time is not made again: it hung.
_MOST_OF_TIMEOUT = 0.5


def repeat_failed(
    check: Check, results: Sequence[CaseResult], progress: Progress
) -> list[CaseResult]:
    """Runs failed cases again, and says HARDWARE or NONDETERMINISTIC where they don't repeat.

    Args:
        check: whose cases failed.
        results: of its cases.
        progress: told what happens.

    Returns:
        The results; those of cases that ran again have a `repeat`.
    """
    cases = {case.name: case for case in check.plan.cases}
    judged, held = list(results), 0
    for number, result in enumerate(results):
        case = cases.get(result.case)
        if case is None or result.verdict is not Verdict.FAIL or held == _ENOUGH:
            continue
        first = check.recordings.finished(case.name)
        if first is None and result.seconds > _MOST_OF_TIMEOUT * case.timeout:
            continue
        close_parents()  # what has flipped there would be in every run that is forked from it
        progress.message(f"{case.name}: running again, to see whether it repeats itself")
        repeat = _crashed(check, case) if first is None else _moved(check, case, first, result)
        held += repeat.verdict is Verdict.FAIL
        judged[number] = _judged(result, repeat)
    return judged


def _moved(check: Check, case: Case, first: Trace, result: CaseResult) -> Repeat:
    """Repeats a run whose records moved, to the step of the first that did."""
    where = result.first_divergence
    step = None if where is None or where.step is None else max(1, where.step)
    allowed = _allowed(check, case)

    def again() -> Trace:
        settings = None if step is None else {"stop_after": step}
        trace = run_case(
            case, replace(check.options, settings=settings), check.plan.root, check.folder.log
        )
        return trace if step is None else trace.up_to(step)

    runs = [first if step is None else first.up_to(step)]
    try:
        runs.append(again())
        apart = first_difference(runs[1], runs[0], allowed)
        if apart is None:
            return Repeat(2, Verdict.FAIL, None, "it ran again here and repeated itself")
        runs.append(again())
    except RunError as error:
        said = f"it ran, and did not when it ran again on this machine: {error}"
        return _lacking(check, error, len(runs) + 1) or Repeat(
            len(runs) + 1, Verdict.NONDETERMINISTIC, None, said
        )
    return verdict_of(runs, allowed)


def _crashed(check: Check, case: Case) -> Repeat:
    """Repeats a run that left no trace."""
    left = 0
    for number in (2, 3):
        try:
            run_case(case, check.options, check.plan.root, check.folder.log)
            left += 1
        except RunError as error:
            lacking = _lacking(check, error, number)
            if lacking is not None:
                return lacking
            if number == 2:
                return Repeat(2, Verdict.FAIL, None, "it failed again here")
    verdict = Verdict.HARDWARE if left == 2 else Verdict.NONDETERMINISTIC
    said = f"of 3 runs on this machine {left} ended and {3 - left} failed"
    return Repeat(3, verdict, None, f"{said}: {_WHAT[verdict]}")


def _lacking(check: Check, error: RunError, runs: int) -> Repeat | None:
    """UNFIT where a further run left no trace because the machine had no room for it."""
    lacking = run_lacked(error, check.folder.path)
    return None if lacking is None else Repeat(runs, Verdict.UNFIT, None, lacking)


_WHAT = {
    Verdict.HARDWARE: "this machine went wrong once (a flipped bit, or a race that shows rarely); "
    "look at its memory and its cards, and check again on another",
    Verdict.NONDETERMINISTIC: "the code, or a library under it, does not repeat itself",
}


def verdict_of(runs: Sequence[Trace], allowed: Tolerances) -> Repeat:
    """Says what three runs of one code on one machine show, of which the first two differ.

    Args:
        runs: their traces, to the same step.
        allowed: by how much they may differ and still be alike.

    Returns:
        HARDWARE where one of them stands alone, NONDETERMINISTIC where no two are alike.
    """
    first, second, third = runs
    apart = first_difference(second, first, allowed)
    ordinal = None
    if first_difference(third, second, allowed) is None:
        ordinal = "first"
    elif first_difference(third, first, allowed) is None:
        ordinal = "second"
    verdict = Verdict.NONDETERMINISTIC if ordinal is None else Verdict.HARDWARE
    place = "" if apart is None else f"{apart.place}: {apart.actual!r}, then {apart.expected!r}"
    which = "no two are alike" if ordinal is None else f"the {ordinal} stands alone"
    said = f"of 3 runs on this machine {which}, first at {place}; {_WHAT[verdict]}"
    return Repeat(3, verdict, apart, said)


def first_difference(
    expected: Trace, actual: Trace, allowed: Tolerances = EXACT
) -> Divergence | None:
    """The first record of both traces in which two runs of one code differ.

    Args:
        expected: of one run.
        actual: of the other.
        allowed: tolerances; by default none.

    Returns:
        The record; None where they are alike. A NaN in both is no difference, nor is a record
        that one run alone has, since it may have been stopped earlier.
    """
    differing = [
        found
        for found in compare(expected, actual, allowed).divergences
        if not one_trace_only(found)
    ]
    if not differing:
        return None
    never = _never_equal(expected, allowed) & _never_equal(actual, allowed)
    return next((d for d in differing if (d.place, d.offset) not in never), None)


def _never_equal(trace: Trace, allowed: Tolerances) -> set[tuple[str, int | None]]:
    """Places whose value, a NaN, is not even equal to itself."""
    return {(d.place, d.offset) for d in compare(trace, trace, allowed).divergences}


def _allowed(check: Check, case: Case) -> Tolerances:
    """By how much two runs of a case may differ on one machine."""
    if case.deterministic or case.arithmetic == "wide":
        return EXACT
    try:
        return check.golden_of(case.name).tolerances
    except DamagedFileError:
        return EXACT


def _judged(result: CaseResult, repeat: Repeat) -> CaseResult:
    """The result with what the repeat shows, which decides its verdict."""
    if repeat.verdict is Verdict.FAIL:
        return replace(result, repeat=repeat, message=_joined(result.message, repeat.message))
    return replace(
        result,
        verdict=repeat.verdict,
        repeat=repeat,
        first_divergence=repeat.first_divergence or result.first_divergence,
        message=_joined(repeat.message, f"against the golden: {result.message}"),
        if_accepted=None if result.if_accepted is None else repeat.verdict,
    )


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))
