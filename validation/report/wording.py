"""Phrases that every sink says the same way: where a divergence is, how much was bit-identical.

Names and messages come from traces, so they are cleaned of control characters here before any
sink (a terminal, XML) sees them.
"""

import math
import shlex
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from validation.compare import Divergence
from validation.gate.nearness import summary
from validation.gate.verdict import CaseResult, CheckResult
from validation.report.charts import format_number

_KEPT_CONTROLS = "\n\t"


def clean(text: object) -> str:
    """Returns `text` with control and bidirectional-override characters made visible."""
    return "".join(
        c
        if c in _KEPT_CONTROLS or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn")
        else f"\\u{ord(c):04x}"
        for c in str(text)
    )


def value_text(value: object) -> str:
    """Returns a recorded value losslessly, numbers in their shortest form."""
    return repr(value) if isinstance(value, float) else clean(value)


def number_text(value: float | None) -> str:
    """Returns a relative error or tolerance in a few digits; a dash when there is none."""
    return "-" if value is None else format_number(float(value), 3)


def where(divergence: Divergence) -> str:
    """Returns the place of a divergence in one line, outermost first."""
    return clean(divergence.place)


def diff_command(run_dir: Path, case: str) -> str:
    """Returns the command that shows all differences of a case from what it was compared with."""
    base = run_dir / "base"  # what `golden check --against` leaves of the other revision
    sides = [base, run_dir] if (base / case).is_dir() else [run_dir]
    return shlex.join(["golden", "diff", case, *map(path_text, sides)])


def path_text(path: Path) -> str:
    """Returns a path as short as the working directory allows."""
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def share(part: int, whole: int) -> str:
    """Returns `part (x %)` of `whole`, never rounding an incomplete share up to 100 %."""
    if not whole:
        return f"{part:,}"
    percent = math.floor(1000 * part / whole) / 10
    return f"{part:,} ({percent:.4g} %)"


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Returns nested values as (dotted name, text) pairs."""
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            pairs += flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            pairs.append((f"{prefix}{name}", ", ".join(map(str, value))))
        else:
            pairs.append((f"{prefix}{name}", str(value)))
    return pairs


def ran(result: CheckResult) -> list[CaseResult]:
    """Returns the cases that were not skipped."""
    return [case for case in result.cases if case.skipped_because is None]


def skipped(result: CheckResult) -> list[CaseResult]:
    """Returns the skipped cases."""
    return [case for case in result.cases if case.skipped_because is not None]


def loosening_lines(result: CheckResult) -> list[str]:
    """Returns what of the change would loosen the gate, and the verdict if that were accepted."""
    if not result.loosened:
        return []
    lines = []
    for found in result.loosened:
        text = clean(found.text).strip().partition("\n")[0]
        lines.append(f"loosens the gate: {clean(found.case) or 'quarantine'}: {text}")
    if result.if_accepted == "PASS":
        return [*lines, "if an owner accepts this: PASS"]
    return [*lines, f"no owner can accept this: the verdict would be {result.if_accepted}"]


def headline(result: CheckResult) -> str:
    """Returns the verdict's reason in one sentence."""
    return clean(result.message or summary(result)).strip().partition("\n")[0]


def notes(result: CheckResult) -> list[str]:
    """Returns what else a verdict of the code says: of rounding, and of the machine."""
    if result.verdict not in ("PASS", "FAIL"):
        return []  # the rest of an INVALID's message is the end of a log
    return clean(result.message or summary(result)).strip().split("\n")[1:]


def kind_text(result: CaseResult | CheckResult) -> str:
    """Returns a verdict with which PASS it is."""
    return f"{result.verdict} {result.kind}".rstrip()


def ratio_text(ratio: float | None) -> str:
    """Returns a ratio of error to tolerance in a few digits; a dash when there is none."""
    return "-" if ratio is None else f"{ratio:.3g}"


def nearest_text(case: CaseResult) -> str:
    """Returns a case's largest ratio and where it is; empty where nothing floating differs."""
    if case.largest_at is None:
        return ""
    return f"largest ratio {ratio_text(case.largest_ratio)} at {where(case.largest_at)}"
