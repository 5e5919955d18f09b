"""How near a run came to what was expected, and whether the machine may be the reason.

A PASS is IDENTICAL or WITHIN TOLERANCE, by a ratio of error to tolerance.

Wide arithmetic gives the same bits on every CPU, so a wide case that moved was moved by code. In
native arithmetic another type of machine rounds elsewhere; tolerances cover that, whether measured
on this type or not, and `golden check CASE --against REV` tells machine from code for certain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from validation.cases import Case
from validation.compare import Comparison, Divergence, Outcome
from validation.gate.verdict import IDENTICAL, CaseResult, CheckResult, Verdict
from validation.goldens import Golden
from validation.running.environment import machine_type

SMALL_RATIO = 10.0
"""Of error to tolerance: what another machine's kernels are known to do, and some more."""
SMALL_ERROR = 1e-4
"""The same as a relative error, where a case was never calibrated and has no tolerances."""
_NAMED = 3


def largest(*comparisons: Comparison) -> Outcome | None:
    """The floating record with the largest ratio of several comparisons; None where none was."""
    found = [c.largest for c in comparisons if c.largest is not None]
    return max(found, key=lambda outcome: outcome.ratio, default=None)


def nearness(*comparisons: Comparison) -> dict[str, Any]:
    """`largest_ratio` and `largest_at` of a case's result."""
    outcome = largest(*comparisons)
    if outcome is None:
        return {}
    place = outcome.place if outcome.ratio else None
    return {"largest_ratio": outcome.ratio, "largest_at": place}


def calibrated_here(golden: Golden, environment: Mapping[str, Any]) -> bool:
    """Says whether a golden's tolerances were calibrated on a type of machine.

    Args:
        golden: its calibration lists `calibrated_on`, an object with `machine` for each type.
        environment: of a run on the machine in question.

    Returns:
        Whether the calibration lists the environment's type of machine.
    """
    listed = golden.calibration.get("calibrated_on") or []
    machines = {entry.get("machine") for entry in listed if isinstance(entry, Mapping)}
    return machine_type(environment) in machines


def may_be_the_machine(
    case: Case,
    golden: Golden,
    environment: Mapping[str, Any],
    divergences: Sequence[Divergence],
    lane: str,
) -> str:
    """Says whether a FAIL of floating records alone may come from the machine.

    Args:
        case: that failed.
        golden: what it was compared with.
        environment: of the run.
        divergences: beyond tolerance.
        lane: of the check.

    Returns:
        The sentences for the user; empty where there is nothing to say.
    """
    errors = [d.relative_error for d in divergences if d.relative_error is not None]
    if not errors or len(errors) < len(divergences):
        return ""
    if case.arithmetic == "wide":
        return (
            "the case runs in wide arithmetic, and another machine gives the same bits: the code "
            "moved it, or another version of a library"
        )
    here = machine_type(environment)
    if calibrated_here(golden, environment) or here == machine_type(golden.environment):
        return ""
    if golden.tolerances.classes:
        ratios = [
            error / d.tolerance if d.tolerance else math.inf
            for error, d in zip(errors, divergences, strict=True)
        ]
        small = max(ratios) < SMALL_RATIO
        size = f"it is beyond tolerance by a ratio of {max(ratios):.3g}"
    else:
        small = max(errors) < SMALL_ERROR
        size = f"it was never calibrated, and moved by a relative {max(errors):.3g}"
    if not small:
        return ""
    return (
        f"{size}, on a type of machine ({here}) that nobody calibrated it on: another machine's "
        f"kernels can do this. To tell machine from code, run `golden check {case.name} --against "
        f"REV --lane {lane}` with the revision that you changed: both run here and are compared "
        "bit for bit"
    )


def summary(result: CheckResult) -> str:
    """Words a check's message.

    Args:
        result: the check; its own message is not looked at.

    Returns:
        The verdict's reason in the first line, what else to know in further ones.
    """
    ran = [case for case in result.cases if case.skipped_because is None]
    bad = [case for case in ran if case.verdict == result.verdict]
    if result.verdict is Verdict.PASS:
        return "\n".join([_which_pass(result, ran), *_machine(result), *_rounded_elsewhere(ran)])
    if result.verdict is Verdict.FAIL:
        text = f"{len(bad)} of {counted(len(ran), 'case')} moved."
        first = next((case for case in bad if case.first_divergence is not None), None)
        if first is not None and first.first_divergence is not None:
            text += f" First divergence: {first.case}, {_line(first.first_divergence.place)}."
        return "\n".join([text, *_machine(result)])
    if result.verdict in (Verdict.HARDWARE, Verdict.NONDETERMINISTIC):
        return f"{bad[0].case}: {_first_line(bad[0].message)}" if bad else ""
    if result.verdict is Verdict.INVALID:
        if bad:
            return f"{bad[0].case}: {_first_line(bad[0].message)}"
        if not ran:
            return "Nothing was compared: no case ran."
        return "The gate could not prove itself: its canary was not caught."
    reason = f": {_first_line(bad[0].message)}" if bad else "."
    return f"This machine could not serve{reason}"


def _which_pass(result: CheckResult, ran: Sequence[CaseResult]) -> str:
    compared = sum(case.compared for case in ran)
    identical = sum(case.identical for case in ran)
    passed = [case for case in ran if case.verdict is Verdict.PASS]
    matched = f"{counted(len(passed), 'case')} ran and matched the goldens"
    if result.kind == IDENTICAL:
        wide = sum(case.wide for case in ran)
        where = "on this machine"
        if wide == len(ran):
            where = "on any machine"
        elif wide:
            where += f", and on any machine in the {wide} that run in wide arithmetic"
        return (
            f"IDENTICAL: {matched} bit for bit, each of {counted(compared, 'record')}: this code "
            f"rounds nothing differently {where}."
        )
    other = compared - identical
    text = (
        f"WITHIN TOLERANCE: {matched}; {other:,} of {counted(compared, 'record')} have other bits"
    )
    known = [case for case in passed if case.largest_ratio is not None]
    nearest = max(known, key=lambda case: case.largest_ratio or 0.0, default=None)
    if nearest is not None and nearest.largest_at is not None:
        text += f", the largest ratio of error to tolerance is {_near(nearest)}"
    left_out = len(ran) - len(passed)
    if left_out:
        text += f"; {counted(left_out, 'quarantined case')} moved, which does not count"
    return f"{text}."


def _machine(result: CheckResult) -> list[str]:
    """What a check on a type of machine says that nobody calibrated, if a native case differs."""
    unknown = [
        case
        for case in result.cases
        if case.calibrated_here is False and not case.wide and case.identical < case.compared
    ]
    if not unknown:
        return []
    nearest = max(unknown, key=lambda case: case.largest_ratio or 0.0)
    source = (
        "come from random rounding, which imitates machines that could exist"
        if result.environment.get("capability") is None
        else "were measured on other machines"
    )
    text = (
        f"Nobody calibrated {_names(unknown)} on this type of machine "
        f"({machine_type(result.environment)}). The tolerances {source}"
    )
    if nearest.largest_at is not None and math.isfinite(nearest.largest_ratio or 0.0):
        text += f"; this run's largest ratio to them is {_near(nearest)}"
    return [f"{text}."]


def _rounded_elsewhere(ran: Sequence[CaseResult]) -> list[str]:
    moved = [c for c in ran if c.wide and c.verdict is Verdict.PASS and c.kind != IDENTICAL]
    if not moved:
        return []
    return [
        f"In wide arithmetic every machine gives the same bits: in {_names(moved)} the code, or "
        "another version of a library, rounds elsewhere."
    ]


def _near(case: CaseResult) -> str:
    place = "" if case.largest_at is None else f", {_line(case.largest_at.place)}"
    return f"{case.largest_ratio:.3g}: {case.case}{place}"


def _names(cases: Sequence[CaseResult]) -> str:
    names = [case.case for case in cases]
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {counted(more, 'more case')}" if more > 0 else "")


def counted(count: int, noun: str) -> str:
    """`1 case`, `2 cases`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _line(text: str) -> str:
    """Text of a trace in one line."""
    return " ".join(text.split())


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
