"""`golden explain`: a run's first divergence and what led to it, in one screen of plain text."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from validation.compare import Divergence
from validation.gate.nearness import counted
from validation.gate.verdict import CaseResult, CheckResult, Verdict
from validation.gate.verdict_file import read_verdict
from validation.report.evidence import CaseEvidence, DecodedEvidence, EventEvidence, State
from validation.report.gather import load_evidence
from validation.report.wording import (
    clean,
    diff_command,
    flat,
    headline,
    notes,
    number_text,
    ran,
    share,
    value_text,
)
from validation.trace import RecordKind

_BEFORE = 4
_AFTER = 3
_MAX_METRICS = 4
_MAX_CHANGES = 6
_MAX_MESSAGE_LINES = 14
_WIDTH = 100


def render_explanation(run_dir: Path) -> str:
    """Explains a run folder: what moved first, and what led to it.

    Args:
        run_dir: the run folder.

    Returns:
        The explanation, ended by a newline.

    Raises:
        DamagedFileError: the folder has no whole verdict, or damaged evidence.
    """
    result = read_verdict(run_dir)
    troubled = [case for case in ran(result) if case.verdict is not Verdict.PASS]
    # A movement is explained rather than what could not be compared at all.
    chosen = next((c for c in troubled if c.first_divergence is not None), None)
    chosen = chosen or next(iter(troubled), None)
    lines = [
        f"{result.verdict}  lane {result.lane}, {run_dir.name}",
        headline(result),
        *notes(result),
    ]
    if chosen is not None:
        evidence = load_evidence(run_dir, chosen.case) or CaseEvidence()
        lines += ["", *_explain_case(chosen, evidence, result)]
        if chosen.first_divergence is not None:
            bisection = shlex.join(["golden", "bisect", "GOOD", "HEAD", chosen.case])
            lines += [
                "",
                "next:",
                *(f"  {c}" for c in (diff_command(run_dir, chosen.case), bisection)),
            ]
    others = [case for case in troubled if case is not chosen]
    if others:
        lines += ["", "also:"]
        lines += [f"  {clean(c.case)} {c.verdict} {_short(c.message)}".rstrip() for c in others[:5]]
        if len(others) > 5:
            lines.append(f"  and {counted(len(others) - 5, 'case')} more")
    if result.verdict is Verdict.PASS:
        compared = sum(case.compared for case in result.cases)
        identical = sum(case.identical for case in result.cases)
        lines.append(f"{compared:,} records compared, {share(identical, compared)} bit-identical")
    return "\n".join(lines) + "\n"


def environment_changes(
    golden: Mapping[str, str], environment: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """Lists what differs between the environments of a golden and of a check.

    Args:
        golden: flat provenance of the golden, with its environment under `environment.`.
        environment: environment of the check.

    Returns:
        (name, the golden's value, the run's value) of each difference.
    """
    now = dict(flat(environment))
    prefix = "environment."
    before = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
    if not before:
        return []
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [(name, before.get(name, "-"), now.get(name, "-")) for name in names]


def _explain_case(case: CaseResult, evidence: CaseEvidence, result: CheckResult) -> list[str]:
    divergence = case.first_divergence
    lines = [f"case {clean(case.case)}: {case.verdict}"]
    if divergence is None:
        message = clean(case.message).splitlines()
        return [*lines, *(f"  {line}" for line in message[-_MAX_MESSAGE_LINES:])]
    lines += _first_divergence(divergence)
    lines += [f"  {text}" for text in _decoded(evidence.decoded)]
    led = _led_to_it(divergence, evidence)
    if led:
        lines += ["", "in execution order:", *led]
    followed = _followed(divergence, evidence)
    if followed:
        lines += ["", *followed]
    changes = environment_changes(evidence.golden, result.environment)
    if changes:
        lines += ["", "the environment differs from the golden's:"]
        lines += [f"  {clean(n)}: {clean(a)} -> {clean(b)}" for n, a, b in changes[:_MAX_CHANGES]]
        if len(changes) > _MAX_CHANGES:
            lines.append(f"  and {len(changes) - _MAX_CHANGES} more")
    return lines


def _first_divergence(divergence: Divergence) -> list[str]:
    place = {
        "step": divergence.step,
        "micro-batch": divergence.micro_batch,
        "phase": divergence.phase,
        "rank": divergence.rank,
        "offset": divergence.offset,
    }
    known = ", ".join(f"{k} {clean(v)}" for k, v in place.items() if v is not None)
    lines = [
        f"first divergence: {known}",
        f"  module    {clean(divergence.module or '-')}",
        f"  tensor    {clean(divergence.tensor or '-')}",
        f"  expected  {_short(value_text(divergence.expected))}",
        f"  actual    {_short(value_text(divergence.actual))}",
    ]
    error, tolerance = divergence.relative_error, divergence.tolerance
    if error is not None:
        times = f", {number_text(error / tolerance)} times the tolerance" if tolerance else ""
        lines.append(f"  error     {number_text(error)} relative{times} {number_text(tolerance)}")
    return lines


def _decoded(decoded: Sequence[DecodedEvidence]) -> list[str]:
    return [
        f"{clean(d.side):8}  {_line(d.before)[-40:]}[{_line(d.token)}]{_line(d.after)[:40]}"
        for d in decoded
    ]


def _led_to_it(divergence: Divergence, evidence: CaseEvidence) -> list[str]:
    """Returns the events around the divergence, it marked; nothing when it is no event."""
    if evidence.first_kind in (RecordKind.CURVE, RecordKind.TABLE):
        return []
    events = evidence.events
    place = (divergence.step, divergence.phase, divergence.module, divergence.tensor)
    at = next(
        (
            i
            for i, e in enumerate(events)
            if (e.step, e.phase, e.module, e.tensor) == place and not e.state.passes
        ),
        None,
    )
    if at is None:
        return []
    start = max(0, at - _BEFORE)
    return [
        f"{'>' if index == at else ' '} step {e.step} {e.phase:9} "
        f"{clean(e.module)} {clean(e.tensor)}: {_state(e)}"
        for index, e in enumerate(events[start : at + _AFTER + 1], start)
    ]


def _state(event: EventEvidence) -> str:
    if event.ratio is None or event.state in (State.IDENTICAL, State.NAN):
        return str(event.state)
    return f"{event.state}, {number_text(event.ratio)} of it"


def _followed(divergence: Divergence, evidence: CaseEvidence) -> list[str]:
    """Returns how far it spread: a first wrong value makes the later ones wrong."""
    bad = [event for event in evidence.events if not event.state.passes]
    lines = []
    if bad:
        modules = {event.module for event in bad}
        text = f"{counted(len(bad), 'event')} in {counted(len(modules), 'module')} beyond tolerance"
        lines.append(f"spread: {text} of {len(evidence.events):,}")
    firsts = sorted(
        (step, curve.metric)
        for curve in evidence.curves
        for step in [_first_bad(curve.steps, curve.states)]
        if step is not None
    )
    if firsts:
        named = ", ".join(f"{clean(m)} (step {s})" for s, m in firsts[:_MAX_METRICS])
        more = len(firsts) - _MAX_METRICS
        lines.append(f"curves: {named}" + (f" and {more} more" if more > 0 else ""))
    elif evidence.curves:
        lines.append(f"curves: all {len(evidence.curves)} within tolerance")
    return lines


def _first_bad(steps: Sequence[int], states: Sequence[State]) -> int | None:
    pairs = zip(steps, states, strict=True)
    return next((step for step, state in pairs if not state.passes), None)


def _line(text: str) -> str:
    return clean(text).replace("\n", "\\n")


def _short(text: str) -> str:
    line = clean(text).strip().partition("\n")[0]
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"
