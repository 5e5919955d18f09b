"""Quarantine: cases that may fail for a few days while somebody repairs them.

`goldens/quarantine.json` is reviewed like code:

    {"schema": 1, "entries": [{"case": "my_case", "owner": "ada", "issue": "https://...",
                               "added": "2026-01-05", "expires": "2026-01-12"}]}

A quarantined case still runs and is shown; its FAIL, or NONDETERMINISTIC, is left out of the
verdict until the entry expires. An expired entry fails the check, whatever the case does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime, timezone
from pathlib import Path

from validation.files import DamagedFileError, check_schema, decode_json, read_file
from validation.gate.verdict import CaseResult, Verdict
from validation.schema import Form, Text, parse

FILE = "quarantine.json"
MAX_DAYS = 14


class QuarantineEntry(Form, frozen=True):
    """One case that may fail.

    Attributes:
        case: its name.
        owner: who repairs it.
        issue: where that is tracked.
        added: first day.
        expires: last day, at most `MAX_DAYS` after the first.
    """

    case: Text
    owner: Text
    issue: Text
    added: date
    expires: date

    def __post_init__(self) -> None:
        if not 0 <= (self.expires - self.added).days <= MAX_DAYS:
            raise ValueError(
                f"{self.case}: from {self.added} to {self.expires}; at most {MAX_DAYS} days"
            )
        if self.added > datetime.now(timezone.utc).date():
            raise ValueError(f"{self.case}: added on {self.added}, which is to come")

    def describe(self) -> str:
        """One line."""
        return f"quarantined until {self.expires} ({self.owner}, {self.issue})"


class _Quarantine(Form, frozen=True):
    schema: int
    entries: list[QuarantineEntry]


def load_quarantine(goldens: Path) -> list[QuarantineEntry]:
    """Reads the quarantine file of a store; an absent file is an empty quarantine.

    Args:
        goldens: `goldens/` of a repository.

    Returns:
        The entries, expired ones included.

    Raises:
        DamagedFileError: malformed, an entry without owner or issue, or one of more than
            `MAX_DAYS` days; the file's path comes first.
    """
    path = goldens / FILE
    if not path.exists():
        return []
    document = decode_json(read_file(path), path)
    check_schema(document, path)
    read = parse(document, _Quarantine, path).entries
    names = [entry.case for entry in read]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DamagedFileError(f"{path}: {twice} is there twice")
    return read


def apply_quarantine(
    results: Sequence[CaseResult], entries: Sequence[QuarantineEntry], today: date | None = None
) -> tuple[list[CaseResult], list[Verdict]]:
    """Says in the results what is quarantined, and which verdicts count.

    Args:
        results: of a check.
        entries: of the quarantine file.
        today: for tests; the current date in UTC.

    Returns:
        The results, with messages, and the verdicts that make up the check's.
    """
    now = today or datetime.now(timezone.utc).date()
    by_case = {entry.case: entry for entry in entries}
    shown, counted = [], []
    for result in results:
        entry = by_case.get(result.case)
        if entry is None or result.verdict is Verdict.SKIPPED:
            shown.append(result)
            counted.append(result.verdict)
        elif now > entry.expires:
            message = f"its quarantine expired on {entry.expires} ({entry.owner}, {entry.issue})"
            verdict = Verdict.FAIL if result.verdict is Verdict.PASS else result.verdict
            shown.append(replace(result, verdict=verdict, message=_joined(message, result)))
            counted.append(verdict)
        else:
            shown.append(replace(result, message=_joined(entry.describe(), result)))
            if result.verdict not in (Verdict.FAIL, Verdict.NONDETERMINISTIC):
                counted.append(result.verdict)
    return shown, counted


def _joined(message: str, result: CaseResult) -> str:
    return f"{message}\n{result.message}" if result.message else message
