"""Quarantine: cases that may fail for a few days while somebody repairs them.

`goldens/quarantine.json` is reviewed like code:

    {"schema": 1, "entries": [{"case": "my_case", "owner": "ada", "issue": "https://...",
                               "added": "2026-01-05", "expires": "2026-01-12"}]}

A quarantined case still runs and is shown; its FAIL is left out of the verdict until the entry
expires. An expired entry fails the check, whatever the case does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

from validation.files import DamagedFileError, check_schema, decode_json, read_file
from validation.gate.verdict import CaseResult, Verdict

FILE = "quarantine.json"
MAX_DAYS = 14
_FIELDS = frozenset({"case", "owner", "issue", "added", "expires"})


@dataclass(frozen=True)
class QuarantineEntry:
    """One case that may fail.

    Attributes:
        case: its name.
        owner: who repairs it.
        issue: where that is tracked.
        added: first day.
        expires: last day, at most `MAX_DAYS` after the first.
    """

    case: str
    owner: str
    issue: str
    added: date
    expires: date

    def describe(self) -> str:
        """One line."""
        return f"quarantined until {self.expires} ({self.owner}, {self.issue})"


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
    entries = document.get("entries")
    if not isinstance(entries, list):
        raise DamagedFileError(f"{path}: no list of entries")
    read = [_entry(entry, path) for entry in entries]
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
            if result.verdict is not Verdict.FAIL:
                counted.append(result.verdict)
    return shown, counted


def _joined(message: str, result: CaseResult) -> str:
    return f"{message}\n{result.message}" if result.message else message


def _entry(entry: Any, path: Path) -> QuarantineEntry:
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        raise DamagedFileError(f"{path}: an entry has {', '.join(sorted(_FIELDS))}; not {entry!r}")
    blank = [name for name, value in entry.items() if not str(value).strip()]
    if blank:
        raise DamagedFileError(f"{path}: {entry['case']}: {blank[0]} is empty")
    try:
        added, expires = (date.fromisoformat(entry[name]) for name in ("added", "expires"))
    except (TypeError, ValueError) as error:
        raise DamagedFileError(f"{path}: {entry['case']}: {error}") from error
    if not 0 <= (expires - added).days <= MAX_DAYS:
        raise DamagedFileError(
            f"{path}: {entry['case']}: from {added} to {expires}; at most {MAX_DAYS} days"
        )
    if added > datetime.now(timezone.utc).date():
        raise DamagedFileError(f"{path}: {entry['case']}: added on {added}, which is to come")
    return QuarantineEntry(
        str(entry["case"]), str(entry["owner"]), str(entry["issue"]), added, expires
    )
