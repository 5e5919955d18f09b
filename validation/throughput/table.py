"""Benchmarks as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from validation.throughput.bench import BenchResult, CaseBench
from validation.throughput.figures import Figures, OperatorChange
from validation.throughput.session import SIDES
from validation.throughput.trend import Change, Point, change_points

SHOWN_OPERATORS = 15
_NAME_WIDTH = 60
_ROWS: Sequence[tuple[str, Callable[[Figures], str]]] = (
    ("step, ms", lambda f: f"{f.step_seconds * 1e3:.2f}"),
    ("tokens/s", lambda f: f"{f.tokens_per_second:,.0f}"),
    ("MFU", lambda f: "-" if f.mfu is None else f"{f.mfu:.2%}"),
    ("peak memory, MiB", lambda f: f"{f.peak_bytes / 2**20:,.1f}"),
    ("optimizer, share", lambda f: f"{f.optimizer_share:.1%}"),
    ("step / reference", lambda f: f"{f.relative_cost:.3f}"),
)


def render_bench(result: BenchResult) -> str:
    """A benchmark: verdict, figures of both sides, what got slower."""
    lines = [f"base {result.base[:12]}, head {result.head[:12]} and working tree"]
    for case in result.cases:
        why = f": {case.message}" if case.message else ""
        lines += ["", f"case: {case.case} {case.verdict}{why}"]
        lines += _case_lines(case)
    return "\n".join([*lines, "", f"{result.verdict} on {result.lane} in {result.seconds:.0f} s"])


def _case_lines(case: CaseBench) -> list[str]:
    judgement, figures = case.judgement, case.figures
    if judgement is None or figures is None:
        return []
    rows: list[tuple[str, ...]] = [("", *SIDES)]
    rows += [(name, *(text(figures[side]) for side in SIDES)) for name, text in _ROWS]
    detectable = judgement.detectable
    smallest = "nothing" if detectable is None else f"{detectable - 1.0:.2%} slower"
    return [
        *_aligned(rows),
        *(
            f"{what}, head / base: {each.ratio:.4f} [{each.low:.4f}, {each.high:.4f}], "
            f"p = {each.p:.2g}, {each.quads} quads; by start "
            + ", ".join(f"{ratio:.4f}" for ratio in each.starts)
            for what, each in (("median step", judgement), ("whole block", case.whole))
            if each is not None
        ),
        f"peak memory, head / base: {case.memory_ratio:.4f}",
        f"this run would find, with 90 % power: {smallest}",
        *_operator_lines(case.operators),
    ]


def _operator_lines(changes: Sequence[OperatorChange]) -> list[str]:
    if not changes:
        return []

    def milliseconds(seconds: float | None) -> str:
        return "-" if seconds is None else f"{seconds * 1e3:.3f}"

    rows = [("ms of a step, profiled", *SIDES, "difference")]
    rows += [
        (
            change.name[:_NAME_WIDTH],
            milliseconds(change.base),
            milliseconds(change.head),
            f"{change.difference * 1e3:+.3f}",
        )
        for change in changes[:SHOWN_OPERATORS]
    ]
    return _aligned(rows)


def render_trend(series: Mapping[str, Sequence[Point]]) -> str:
    """Past runs of each case, oldest first, change points marked."""
    if not series:
        return "no benchmark yet; golden bench --base REV makes one"
    lines: list[str] = []
    for case, points in series.items():
        changes = {change.index: change for change in _changes(points)}
        rows = [(case, "head", "verdict", "step / reference", "head / base", "")]
        for index, point in enumerate(points):
            change = changes.get(index)
            mark = "" if change is None else _mark(change)
            cost, ratio = f"{point.relative_cost:.3f}", f"{point.ratio:.4f}"
            rows.append((point.run, point.head[:12], point.verdict, cost, ratio, mark))
        lines += _aligned(rows)
    return "\n".join(lines)


def trend_json(series: Mapping[str, Sequence[Point]]) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        case: {
            "points": [vars(point) for point in points],
            "changes": [vars(change) for change in _changes(points)],
        }
        for case, points in series.items()
    }


def _mark(change: Change) -> str:
    return f"<- {change.ratio - 1.0:+.2%}, {change.total - 1.0:+.2%} since the first level"


def _changes(points: Sequence[Point]) -> list[Change]:
    return change_points([point.relative_cost for point in points])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width; the first is text, the others end where their numbers do."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
