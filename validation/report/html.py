"""`write_report`: a check as one HTML file that needs no network and no other file.

This module turns a result and its evidence into the page's plain values; `validation.report.page`
renders them.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from validation.compare import Divergence
from validation.files import write_atomically
from validation.gate.nearness import counted
from validation.gate.verdict import CaseResult, CheckResult
from validation.report.blind import coverage_of
from validation.report.charts import curve_chart, decimate, format_number
from validation.report.evidence import CaseEvidence, CurveEvidence, State
from validation.report.explain import environment_changes
from validation.report.gather import evidence_of, load_evidence
from validation.report.page import (
    TONES,
    CaseView,
    Change,
    CurveView,
    Decoded,
    DivergenceView,
    Item,
    PageView,
    SkippedView,
    render,
)
from validation.report.pictures import heat_map, mask_pictures
from validation.report.wording import (
    clean,
    diff_command,
    flat,
    headline,
    loosening_lines,
    nearest_text,
    notes,
    number_text,
    path_text,
    ran,
    ratio_text,
    share,
    skipped,
    value_text,
    where,
)
from validation.trace import RecordKind

MAX_CHARTS = 12
_LEADING_METRICS = ("lm_loss", "grad_norm", "learning_rate")
_PROVENANCE_FIRST = ("accepted", "author", "reason", "commit", "source_digest")


def build_page(
    result: CheckResult,
    evidence: Mapping[str, CaseEvidence],
    run_dir: Path,
    written: datetime,
) -> PageView:
    """Gathers the page's content.

    Args:
        result: the check.
        evidence: Curves, events and tables by case; a case may have none.
        run_dir: the run folder, named in the commands to try next.
        written: when the page was written.

    Returns:
        What the template shows.
    """
    series: list[dict[str, Any]] = []
    cases = [
        _case_view(index, case, evidence.get(case.case, CaseEvidence()), result, series)
        for index, case in enumerate(_worst_first(ran(result)))
    ]
    next_text, next_steps = _next_steps(result, run_dir)
    return PageView(
        title=f"{result.verdict} · {clean(result.lane)} · golden check",
        lane=clean(result.lane),
        verdict=str(result.verdict),
        headline=headline(result),
        details=_details(result),
        facts=_facts(result),
        cases=cases,
        skipped=[SkippedView(clean(c.case), clean(c.skipped_because)) for c in skipped(result)],
        environment=[
            Item(clean(name), clean(value), mono=True) for name, value in flat(result.environment)
        ],
        next_text=next_text,
        next_steps=next_steps,
        footer=f"{run_dir.name} · written {written.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC",
        series=series,
        coverage=coverage_of(run_dir, result.lane),
    )


def _worst_first(cases: Sequence[CaseResult]) -> list[CaseResult]:
    order = ("INVALID", "FAIL", "NONDETERMINISTIC", "HARDWARE", "UNFIT", "PASS")
    return sorted(cases, key=lambda c: order.index(str(c.verdict)) if c.verdict in order else 0)


def _details(result: CheckResult) -> list[str]:
    """What follows the headline; what loosens the gate comes last, as in a terminal."""
    return [*notes(result), *_proof(result), *loosening_lines(result)]


def _proof(result: CheckResult) -> list[str]:
    """Whether the gate proved itself, where it tried."""
    if result.canary is None:
        return []
    if result.canary.caught:
        return [
            f"The gate proved itself in this run: it caught the planted fault "
            f"{clean(result.canary.fault)}."
        ]
    return ["The gate could not prove itself: no verdict of this run can be trusted."]


def _facts(result: CheckResult) -> list[Item]:
    cases, left_out = ran(result), skipped(result)
    passed = sum(case.verdict == "PASS" for case in cases)
    compared = sum(case.compared for case in cases)
    identical = sum(case.identical for case in cases)
    facts = [
        Item(
            "Cases passed",
            f"{passed} of {len(cases)}",
            note=f"{len(left_out)} skipped" if left_out else "",
        ),
        Item("Records compared", f"{compared:,}"),
        Item("Bit-identical", f"{identical:,}", note=_percent(identical, compared)),
    ]
    nearest = result.nearest
    if nearest is not None:
        # Beyond 1 a record diverges.
        ratio = ratio_text(nearest.largest_ratio)
        note = "" if nearest.largest_at is None else clean(nearest.case)
        facts.append(Item("Largest error / tolerance", ratio, note=note))
    if result.canary is not None:
        caught = "caught" if result.canary.caught else "NOT caught"
        facts.append(Item("Canary", caught, note=clean(result.canary.fault)))
    return [*facts, Item("Time", f"{result.seconds:,.1f} s")]


def _percent(part: int, whole: int) -> str:
    return share(part, whole).partition("(")[2].rstrip(")") if whole else ""


def _next_steps(result: CheckResult, run_dir: Path) -> tuple[str, list[str]]:
    failed = [case for case in ran(result) if case.verdict == "FAIL"]
    explain = shlex.join(["golden", "explain", path_text(run_dir)])
    if result.verdict == "FAIL" and failed:
        moved = next((c for c in failed if c.first_divergence is not None), None)
        case = shlex.quote((moved or failed[0]).case)
        run = shlex.quote(path_text(run_dir))
        return "Look closer, find the commit, or accept this run, if its code is committed:", [
            explain,
            *([diff_command(run_dir, moved.case)] if moved else []),
            f"golden bisect GOOD HEAD {case}",
            f"golden update {case} --from {run} --reason TEXT",
        ]
    if result.verdict == "INVALID":
        return "The gate could not prove itself. What it found, and the state of its goldens:", [
            explain,
            "golden health",
        ]
    if result.verdict == "HARDWARE":
        return "The machine went wrong, or a race shows rarely. Check again, best elsewhere:", [
            shlex.join(["golden", "check", *_names_of(result, "HARDWARE")]),
            explain,
        ]
    if result.verdict == "NONDETERMINISTIC":
        names = _names_of(result, "NONDETERMINISTIC")
        return "No run is like another. The first operation that differs, with its line:", [
            *(shlex.join(["golden", "explain", "--ops", name]) for name in names[:1]),
            explain,
        ]
    return "", []


def _names_of(result: CheckResult, verdict: str) -> list[str]:
    return [case.case for case in ran(result) if case.verdict == verdict]


def _case_view(
    index: int,
    case: CaseResult,
    evidence: CaseEvidence,
    result: CheckResult,
    series: list[dict[str, Any]],
) -> CaseView:
    curves = sorted(evidence.curves, key=_curve_order)
    outside = sum(not _worst(curve).passes for curve in curves)
    # What moved, and the run's own curves; per-parameter families that passed are a table.
    worth = [c for c in curves if not _worst(c).passes or "/" not in c.metric]
    shown = worth[: max(MAX_CHARTS, min(outside, 2 * MAX_CHARTS))] or curves[:MAX_CHARTS]
    drawn = [_curve_view(curve, series) for curve in shown]
    hidden = [_curve_view(curve, None) for curve in curves if curve not in shown]
    divergence = case.first_divergence
    an_event = evidence.first_kind not in (RecordKind.CURVE, RecordKind.TABLE)
    first = (divergence.step, divergence.module) if divergence is not None and an_event else None
    note = counted(len(curves), "metric") if curves else ""
    if outside:
        note = f"{outside} of {note} outside"
    return CaseView(
        name=clean(case.case),
        anchor=f"case-{index}",
        verdict=str(case.verdict),
        kind=case.kind,
        summary=where(divergence) if divergence is not None else nearest_text(case),
        compared=f"{case.compared:,}",
        identical=f"{case.identical:,}",
        identical_percent=100 * case.identical / case.compared if case.compared else None,
        ratio=ratio_text(case.largest_ratio),
        seconds=f"{case.seconds:.1f}",
        count_note=note,
        message=clean(case.message),
        message_title="Why" if case.verdict != "PASS" else "Note",
        open=index == 0,  # the worst; the table above leads to the others
        divergence=_divergence_view(divergence, evidence) if divergence is not None else None,
        curves=drawn,
        hidden_curves=hidden,
        heat=heat_map(evidence.events, first),
        masks=mask_pictures(evidence.tables),
        changes=[
            Change(clean(name), clean(before), clean(now))
            for name, before, now in environment_changes(evidence.golden, result.environment)
        ],
        provenance=_provenance(evidence.golden),
        detects=_detects(evidence.detects),
    )


def _detects(effects: Mapping[str, float]) -> list[Item]:
    leading = [metric for metric in _LEADING_METRICS if metric in effects]
    rest = sorted(metric for metric in effects if metric not in leading)
    names = [*leading, *rest]
    return [Item(clean(name), number_text(effects[name]), mono=True) for name in names]


def _provenance(golden: Mapping[str, str]) -> list[Item]:
    first = [name for name in _PROVENANCE_FIRST if name in golden]
    rest = [name for name in golden if name not in first]
    return [Item(clean(name), clean(golden[name]), mono=True) for name in [*first, *rest]]


def _divergence_view(divergence: Divergence, evidence: CaseEvidence) -> DivergenceView:
    place = " › ".join(clean(p) for p in (divergence.module, divergence.tensor) if p)
    values = {
        "step": divergence.step,
        "micro-batch": divergence.micro_batch,
        "phase": divergence.phase,
        "rank": divergence.rank,
        "offset": divergence.offset,
    }
    fields = [Item(name, clean(value)) for name, value in values.items() if value is not None]
    fields += [
        Item("expected", value_text(divergence.expected), mono=True),
        Item("actual", value_text(divergence.actual), mono=True),
    ]
    if divergence.relative_error is not None:
        fields.append(Item("relative error", number_text(divergence.relative_error), mono=True))
    if divergence.tolerance is not None:
        fields.append(Item("tolerance", number_text(divergence.tolerance), mono=True))
    decoded = [Decoded(d.side, d.before, d.token, d.after) for d in evidence.decoded]
    return DivergenceView(place or "the run", fields, decoded)


def _rank(state: State) -> int:
    return list(State).index(state)


def _worst(curve: CurveEvidence) -> State:
    return max(curve.states, key=_rank, default=State.MISSING)


def _curve_order(curve: CurveEvidence) -> tuple[bool, int, bool, str]:
    leading = (
        _LEADING_METRICS.index(curve.metric)
        if curve.metric in _LEADING_METRICS
        else len(_LEADING_METRICS)
    )
    # Families of per-parameter metrics come after the run's own.
    return _worst(curve).passes, leading, "/" in curve.metric, curve.metric


def _curve_view(curve: CurveEvidence, series: list[dict[str, Any]] | None) -> CurveView:
    """Lays out one metric; `series` receives what its tooltip shows, None omits the drawing."""
    worst = _worst(curve)
    bad = next((s for s, st in zip(curve.steps, curve.states, strict=True) if not st.passes), None)
    differs = next(
        (s for s, st in zip(curve.steps, curve.states, strict=True) if st != State.IDENTICAL), None
    )
    marker = bad if bad is not None else differs
    label = ""
    if bad is not None:
        label = f"first outside: step {bad}"
    elif differs is not None:
        label = f"first bit differs: step {differs}"
    number = -1
    if series is not None:
        number = len(series)
        keep = decimate(curve.steps, curve.golden, curve.actual, marker)
        series.append(
            {
                "steps": [curve.steps[i] for i in keep],
                "golden": [_json(curve.golden[i]) for i in keep],
                "actual": [_json(curve.actual[i]) for i in keep],
                "tolerance": [_json(curve.tolerance[i]) for i in keep],
            }
        )
    visible = series is not None
    return CurveView(
        metric=clean(curve.metric),
        state=str(worst),
        tone=TONES["PASS"] if worst.passes else TONES["FAIL"],
        note=_worst_deviation(curve),
        marker_label=label,
        series=number,
        chart=curve_chart(
            curve.steps if visible else [],
            curve.golden if visible else [],
            curve.actual if visible else [],
            curve.tolerance if visible else [],
            first_difference=marker,
        ),
    )


def _worst_deviation(curve: CurveEvidence) -> str:
    gaps = [
        (abs(a - g) / abs(g) if g else abs(a - g), step)
        for step, g, a in zip(curve.steps, curve.golden, curve.actual, strict=True)
        if g is not None and a is not None and math.isfinite(g) and math.isfinite(a)
    ]
    worst, step = max(gaps, default=(0.0, 0))
    return f"worst {format_number(worst, 3)} at step {step}" if worst else ""


def _json(value: float | None) -> float | str | None:
    """Returns a JSON value; what JSON lacks becomes text."""
    return value if value is None or math.isfinite(value) else str(value)


def render_report(result: CheckResult, evidence: Mapping[str, CaseEvidence], run_dir: Path) -> str:
    """Returns the report's HTML text."""
    return render(build_page(result, evidence, run_dir, datetime.now(timezone.utc)))


def write_report(result: CheckResult, run_dir: Path, out_path: Path) -> Path:
    """Writes the report of a check.

    Args:
        result: the check.
        run_dir: its run folder; evidence kept there stands in for cases without a comparison.
        out_path: the file to write, replaced whole; its folder is created.

    Returns:
        `out_path`.
    """
    evidence = {}
    for case in ran(result):
        kept = None if case.comparison is not None else load_evidence(run_dir, case.case)
        evidence[case.case] = kept or evidence_of(case)
    write_atomically(out_path, render_report(result, evidence, run_dir).encode("utf-8"))
    return out_path
