"""Verdicts of `golden check --json` as a Markdown table: `python ci/verdict_table.py FILE...`.

The files may come from a pull request of a stranger: they are read as data, held against the
contract, and what they say stays text (`plain_text`). Needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plain_text import code, word

VERDICTS = ("PASS", "FAIL", "INVALID", "HARDWARE", "NONDETERMINISTIC", "UNFIT")
LOOSENINGS = ("tolerance", "quarantine")
CASE_VERDICTS = (*VERDICTS, "SKIPPED")
MAX_BYTES = 1 << 20
MAX_CASES = 200
MAX_TEXT = 300
MAX_MESSAGE = 1200

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_MARKS = {
    "PASS": "✅",
    "FAIL": "❌",
    "INVALID": "❌",
    "HARDWARE": "⚠️",
    "NONDETERMINISTIC": "❌",
    "UNFIT": "⚠️",
    "SKIPPED": "➖",
}


class VerdictError(ValueError):
    """A file that is not what `golden check --json` prints."""


@dataclass(frozen=True)
class Row:
    """One case."""

    case: str
    verdict: str
    compared: int
    identical: int
    seconds: float
    note: str
    kind: str
    ratio: float | None


@dataclass(frozen=True)
class Loosening:
    """Something that would loosen the gate; `case` is empty where a file cannot be read."""

    kind: str
    case: str
    text: str


@dataclass(frozen=True)
class Table:
    """One check; `if_accepted` is its verdict if an owner accepted the loosenings."""

    verdict: str
    lane: str
    seconds: float
    canary: str
    rows: Sequence[Row]
    kind: str
    ratio: float | None
    calibrated_here: bool | None
    message: str
    loosened: Sequence[Loosening] = ()
    if_accepted: str | None = None

    @property
    def acceptable(self) -> bool:
        """Whether an owner's approval would make it pass."""
        return bool(self.loosened) and self.if_accepted == "PASS"


def main() -> int:
    """Prints a table for each file; returns 2 when one is no verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="+", type=Path)
    parser.add_argument("--failed", action="store_true", help="print failed cases' names alone")
    options = parser.parse_args()
    try:
        tables = [read(path) for path in options.file]
    except (VerdictError, OSError) as error:
        print(f"verdict_table: {error}", file=sys.stderr)
        return 2
    if options.failed:
        print("\n".join(r.case for table in tables for r in table.rows if r.verdict == "FAIL"))
    else:
        print("\n\n".join(map(render, tables)))
    return 0


def read(path: Path) -> Table:
    """Reads and holds a file against the contract.

    Raises:
        VerdictError: what is wrong, and where.
        OSError: it cannot be read.
    """
    try:
        return parse(load(path))
    except VerdictError as error:
        raise VerdictError(f"{path.name}: {error}") from error


def load(path: Path) -> Any:
    """The JSON of a file of bounded size, as it is.

    Raises:
        VerdictError: it is larger, or no JSON.
        OSError: it cannot be read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise VerdictError(f"more than {MAX_BYTES} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise VerdictError(str(error)) from error


def parse(data: Any) -> Table:
    """The contract's object, as far as a table shows it.

    Raises:
        VerdictError: a field that is missing or of another kind.
    """
    cases = _field(data, "cases", list)
    if len(cases) > MAX_CASES:
        raise VerdictError(f"cases: more than {MAX_CASES}")
    rows = [_row(case) for case in cases]
    verdict = _one_of(data, "verdict", VERDICTS)
    return Table(
        verdict=verdict,
        lane=_name(data, "lane"),
        seconds=_number(data, "seconds"),
        canary=_canary(data.get("canary")),
        rows=rows,
        kind=_kind(verdict, [row for row in rows if row.compared]),
        ratio=_ratio(data),
        calibrated_here=_optional(data, "calibrated_here", bool),
        message=_text(_optional(data, "message", str), MAX_MESSAGE),
        **_loosened(data),
    )


def _loosened(data: Any) -> dict[str, Any]:
    """What would loosen the gate, and the verdict with it; a file that says neither has none."""
    if not data.get("loosened"):
        return {}
    found = _field(data, "loosened", list)
    if len(found) > MAX_CASES:
        raise VerdictError(f"loosened: more than {MAX_CASES}")
    return {
        "loosened": [
            Loosening(
                kind=_one_of(item, "kind", LOOSENINGS),
                case=_name(item, "case") if _field(item, "case", str) else "",
                text=_text(_field(item, "text", str)),
            )
            for item in found
        ],
        "if_accepted": _one_of(data, "verdict_if_accepted", VERDICTS),
    }


def _row(data: Any) -> Row:
    divergence = data.get("first_divergence") if isinstance(data, dict) else None
    note = _place(divergence) if isinstance(divergence, dict) else ""
    row = Row(
        case=_name(data, "case"),
        verdict=_one_of(data, "verdict", CASE_VERDICTS),
        compared=int(_number(data, "compared")),
        identical=int(_number(data, "identical")),
        seconds=_number(data, "seconds"),
        note=note or _text(data.get("skipped_because")) or _text(data.get("message")),
        kind="",
        ratio=_ratio(data),
    )
    if row.identical > row.compared:
        raise VerdictError("identical: more than compared")
    nearest = _optional(data, "largest_at", dict)
    if row.verdict == "PASS" and row.ratio is not None:
        if row.ratio > 1:
            raise VerdictError("largest_ratio: more than 1 in a case that passed")
        if nearest is not None:
            near = _text(f"largest ratio {row.ratio:.3g} at {_place(nearest, _WHERE)}")
            row = replace(row, note="; ".join(filter(None, (near, row.note))))
    return replace(row, kind=_kind(row.verdict, [row] if row.compared else []))


def _kind(verdict: str, rows: Sequence[Row]) -> str:
    """Which PASS it is, by the counts alone; empty for anything else."""
    if verdict != "PASS" or not rows:
        return ""
    same = all(row.verdict == "PASS" and row.identical == row.compared for row in rows)
    return "IDENTICAL" if same else "WITHIN TOLERANCE"


def _ratio(data: dict[str, Any]) -> float | None:
    """The largest ratio of error to tolerance; None also in files from before it was said."""
    value = data.get("largest_ratio")
    if value is None:
        return None
    if value == "inf":
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise VerdictError("largest_ratio: no number")
    if not 0 <= value < 1e300:
        raise VerdictError("largest_ratio: not a number from 0")
    return float(value)


def _optional(data: dict[str, Any], name: str, kind: type) -> Any:
    """A field that older files lack."""
    return None if data.get(name) is None else _field(data, name, kind)


_WHERE = ("step", "phase", "module", "tensor", "rank")


def _place(
    divergence: dict[str, Any], words: Sequence[str] = (*_WHERE, "expected", "actual")
) -> str:
    parts = [(w, divergence.get(w)) for w in words if divergence.get(w) is not None]
    return _text(", ".join(f"{word} {str(value)[:MAX_TEXT]}" for word, value in parts))


def _canary(data: Any) -> str:
    if data is None:
        return "no bug was planted"
    caught = _field(data, "caught", bool)
    return f"planted {word(_name(data, 'fault'))}: {'caught' if caught else 'NOT caught'}"


def _field(data: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(data, dict) or name not in data:
        raise VerdictError(f"{name}: missing")
    if not isinstance(data[name], kind):
        raise VerdictError(f"{name}: a {type(data[name]).__name__}")
    return data[name]


def _one_of(data: Any, name: str, allowed: Sequence[str]) -> str:
    value = _field(data, name, str)
    if value not in allowed:
        raise VerdictError(f"{name}: not one of {', '.join(allowed)}")
    return str(value)


def _name(data: Any, name: str) -> str:
    value = _field(data, name, str)
    if not _NAME.fullmatch(value):
        raise VerdictError(f"{name}: letters, digits, '.', '_' and '-' only")
    return str(value)


def _number(data: Any, name: str) -> float:
    value = _field(data, name, (int, float))
    if isinstance(value, bool) or not 0 <= value < 1e12:
        raise VerdictError(f"{name}: not a number from 0 to 1e12")
    return float(value)


def _text(value: Any, longest: int = MAX_TEXT) -> str:
    """One short line of printable characters."""
    if not isinstance(value, str):
        return ""
    line = " ".join("".join(c if c.isprintable() else " " for c in value[:longest]).split())
    return line + ("…" if len(value) > longest else "")


def render(table: Table) -> str:
    """The table as Markdown; what the file says of itself stays text (`plain_text`)."""
    kind = f", {table.kind}" if table.kind else ""
    head = f"### {_MARKS[table.verdict]} golden {word(table.lane)}: {table.verdict}{kind}"
    facts = [f"{len(table.rows)} cases in {table.seconds:.0f} s", table.canary]
    if table.ratio is not None:
        facts.append(f"largest ratio of error to tolerance {table.ratio:.3g}")
    if table.calibrated_here is False and table.kind != "IDENTICAL":
        facts.append("not calibrated on this type of machine")
    message = ["", code(table.message)] if table.message else []
    lines = [
        head,
        "",
        f"{'; '.join(facts)}.",
        *message,
        "",
        "| case | verdict | records | bit-identical | seconds | |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in table.rows:
        share = f"{row.identical / row.compared:.1%}" if row.compared else "-"
        note = code(row.note) if row.note else ""
        verdict = f"{_MARKS[row.verdict]} {row.verdict} {row.kind}".rstrip()
        lines.append(
            f"| {word(row.case)} | {verdict} | {row.compared} | {share} | {row.seconds:.1f} "
            f"| {note} |"
        )
    return "\n".join([*lines, *_loosening_lines(table)])


def _loosening_lines(table: Table) -> list[str]:
    if not table.loosened:
        return []
    lines = [
        f"- loosens the gate, {found.kind} {word(found.case)}: {code(found.text)}"
        for found in table.loosened
    ]
    if table.acceptable:
        last = f"Judged as {table.verdict}. If an owner accepts what loosens the gate: PASS."
    else:
        last = f"No owner can accept this: the verdict would be {table.if_accepted}."
    return ["", *lines, "", last]


if __name__ == "__main__":
    sys.exit(main())
