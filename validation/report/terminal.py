"""A check's verdict on a terminal: the table of cases, the canary, the first divergence.

On a terminal it is drawn with rich; elsewhere (a pipe, a CI log) the same content is plain text
whose lines do not depend on any width.
"""

import sys
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from validation.gate.verdict import CaseResult, CheckResult
from validation.report.wording import (
    clean,
    headline,
    kind_text,
    loosening_lines,
    nearest_text,
    notes,
    number_text,
    ran,
    ratio_text,
    share,
    skipped,
    value_text,
    where,
)

# More would push the verdict off the screen.
MAX_PANELS = 3
STYLES = {
    "PASS": "bold green",
    "FAIL": "bold red",
    "INVALID": "bold magenta",
    "HARDWARE": "bold yellow",
    "NONDETERMINISTIC": "bold red",
    "UNFIT": "bold yellow",
    "SKIPPED": "dim",
}


def print_check(result: CheckResult, stream: TextIO | None = None) -> None:
    """Prints the verdict to `stream` (stdout): drawn on a terminal, plain text elsewhere."""
    stream = stream or sys.stdout
    if stream.isatty():
        Console(file=stream).print(rich_check(result))
    else:
        stream.write(plain_check(result))
    stream.flush()


def plain_check(result: CheckResult) -> str:
    """Returns the verdict as plain text."""
    rows = [("case", "verdict", "compared", "bit-identical", "ratio", "seconds")]
    rows += [
        (
            clean(case.case),
            kind_text(case),
            f"{case.compared:,}",
            share(case.identical, case.compared),
            ratio_text(case.largest_ratio),
            f"{case.seconds:.1f}",
        )
        for case in ran(result)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = (
        []
        if len(rows) == 1
        else [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
    )
    lines += [f"{clean(c.case)}  SKIPPED: {clean(c.skipped_because)}" for c in skipped(result)]
    for case in _troubled(result):
        lines.append("")
        lines += [f"{label}: {value}" for label, value in _trouble(case)]
    verdict = f"{result.verdict}  {_totals(result)}"
    lines += ["", _canary(result), *loosening_lines(result)]
    lines += [verdict, headline(result), *notes(result)]
    return "\n".join(line for line in lines if line is not None) + "\n"


def rich_check(result: CheckResult) -> RenderableType:
    """Returns the verdict drawn for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("case", overflow="fold")
    table.add_column("verdict")
    for name in ("compared", "bit-identical", "ratio", "seconds"):
        table.add_column(name, justify="right")
    for case in ran(result):
        table.add_row(
            Text(clean(case.case)),
            Text(kind_text(case), style=STYLES.get(str(case.verdict), "")),
            f"{case.compared:,}",
            share(case.identical, case.compared),
            ratio_text(case.largest_ratio),
            f"{case.seconds:.1f}",
        )
    parts: list[RenderableType] = [table] if table.row_count else []
    for case in skipped(result):
        reason = f"{clean(case.case)}  SKIPPED: {clean(case.skipped_because)}"
        parts.append(Text(reason, style="dim"))
    troubled = _troubled(result)
    for case in troubled[:MAX_PANELS]:
        body = Table.grid(padding=(0, 2))
        body.add_column(style="dim")
        body.add_column(overflow="fold")
        for label, value in _trouble(case):
            body.add_row(label, Text(value))
        style = STYLES.get(str(case.verdict), "").removeprefix("bold ")
        parts.append(Panel(body, border_style=style, expand=False))
    if len(troubled) > MAX_PANELS:
        parts.append(Text(f"and {len(troubled) - MAX_PANELS} more: `golden explain`", style="dim"))
    verdict = Text.assemble(
        (f" {result.verdict} ", f"reverse {STYLES.get(str(result.verdict), '')}"),
        f"  {_totals(result)}",
    )
    parts += [Text(""), Text(_canary(result), style="dim"), *map(Text, loosening_lines(result))]
    parts += [verdict, Text(headline(result))]
    parts += [Text(note, style="dim") for note in notes(result)]
    return Group(*parts)


def _troubled(result: CheckResult) -> list[CaseResult]:
    return [case for case in ran(result) if case.verdict != "PASS"]


def _trouble(case: CaseResult) -> list[tuple[str, str]]:
    """Returns what went wrong with a case as labelled lines, the first divergence first."""
    lines = [("case", f"{clean(case.case)} {case.verdict}")]
    divergence = case.first_divergence
    if divergence is not None:
        lines += [
            ("first divergence", where(divergence)),
            ("expected", value_text(divergence.expected)),
            ("actual", value_text(divergence.actual)),
        ]
        if divergence.relative_error is not None:
            allowed = f", tolerance {number_text(divergence.tolerance)}"
            lines.append(("relative error", number_text(divergence.relative_error) + allowed))
    if case.largest_at is not None:
        lines.append(("largest ratio", nearest_text(case).removeprefix("largest ratio ")))
    if case.message:
        lines.append(("message", clean(case.message)))
    return lines


def _canary(result: CheckResult) -> str:
    if result.canary is None:
        return "canary: not planted"
    caught = "caught" if result.canary.caught else "NOT CAUGHT"
    note = f" ({clean(result.message)})" if result.canary.caught and result.message else ""
    return f"canary: {clean(result.canary.fault)} {caught}{note}"


def _totals(result: CheckResult) -> str:
    compared = sum(case.compared for case in result.cases)
    identical = sum(case.identical for case in result.cases)
    return (
        f"lane {result.lane}: {compared:,} records compared, "
        f"{share(identical, compared)} bit-identical, {result.seconds:.1f} s"
    )
