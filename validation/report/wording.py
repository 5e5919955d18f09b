"""Phrases that every sink says the same way: where a divergence is, how much was bit-identical.

Names and messages come from traces, so they are cleaned of control characters here before any
sink (a terminal, XML) sees them.
"""

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

from validation.report.charts import format_number
from validation.verdict import CaseResult, CheckResult, Divergence

_KEPT_CONTROLS = "\n\t"


def clean(text: object) -> str:
    """Return `text` with control and bidirectional-override characters made visible."""
    return "".join(
        c
        if c in _KEPT_CONTROLS or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn")
        else f"\\u{ord(c):04x}"
        for c in str(text)
    )


def value_text(value: object) -> str:
    """Return a recorded value losslessly, numbers in their shortest form."""
    return repr(value) if isinstance(value, float) else clean(value)


def number_text(value: float | None) -> str:
    """Return a relative error or tolerance in a few digits; a dash when there is none."""
    return "-" if value is None else format_number(float(value), 3)


def where(divergence: Divergence) -> str:
    """Return the place of a divergence in one line, outermost first."""
    parts = []
    if divergence.step is not None:
        parts.append(f"step {divergence.step}")
    if divergence.micro_batch is not None:
        parts.append(f"micro-batch {divergence.micro_batch}")
    if divergence.phase:
        parts.append(str(divergence.phase))
    parts += [clean(part) for part in (divergence.module, divergence.tensor) if part]
    if divergence.rank is not None:
        parts.append(f"rank {divergence.rank}")
    if divergence.offset is not None:
        parts.append(f"offset {divergence.offset}")
    return ", ".join(parts)


def share(part: int, whole: int) -> str:
    """Return `part (x %)` of `whole`, never rounding an incomplete share up to 100 %."""
    if not whole:
        return f"{part:,}"
    percent = math.floor(1000 * part / whole) / 10
    return f"{part:,} ({percent:.4g} %)"


def counted(count: int, noun: str) -> str:
    """Return `1 case`, `2 cases`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as (dotted name, text) pairs."""
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
    """Return the cases that were not skipped."""
    return [case for case in result.cases if case.skipped_because is None]


def skipped(result: CheckResult) -> list[CaseResult]:
    """Return the skipped cases."""
    return [case for case in result.cases if case.skipped_because is not None]


def headline(result: CheckResult) -> str:
    """Return the verdict's reason in one sentence."""
    cases = ran(result)
    bad = [case for case in cases if case.verdict == result.verdict]
    proven = result.canary is not None and result.canary.caught
    if result.message and result.verdict == "INVALID" and not (bad and proven):
        return _first_line(result.message)
    if result.verdict == "PASS":
        return (
            f"{counted(len(cases), 'case')} ran and matched the goldens within measured tolerance."
        )
    if result.verdict == "FAIL":
        text = f"{len(bad)} of {counted(len(cases), 'case')} moved."
        first = next((case for case in bad if case.first_divergence is not None), None)
        if first is not None and first.first_divergence is not None:
            text += f" First divergence: {clean(first.case)}, {where(first.first_divergence)}."
        return text
    if result.verdict == "INVALID":
        if bad:
            return f"{clean(bad[0].case)}: {_first_line(bad[0].message)}"
        if not cases:
            return "Nothing was compared: no case ran."
        return "The gate could not prove itself: its canary was not caught."
    if bad:
        return f"This machine could not serve: {_first_line(bad[0].message)}"
    return "This machine could not serve."


def _first_line(text: str) -> str:
    return clean(text).strip().partition("\n")[0]
