"""Gaps that a repository knows: findings of `golden health` that cannot be repaired today.

    [[tool.golden.gaps]]
    kind = "uncalibrated"
    subjects = ["gpu/big_model"]       # as `golden health` names them, each one in full
    reason = "its reruns need eight cards, which come in March"
    owner = "ada"
    expires = 2027-03-31

They are listed with every health, and do not fail it until they expire. What can be repaired where
it is found (a damaged, orphaned or stale golden, a leftover) cannot be declared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

KINDS = ("uncalibrated", "unchecked", "canaries", "never-run", "coverage")
"""Kinds of findings that only another machine, or another case, can repair."""

LONGEST = timedelta(days=180)
_KEYS = ("kind", "subjects", "reason", "owner", "expires")


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Findings of a kind that are known.

    Attributes:
        kind: one of `KINDS`.
        subjects: of the findings, in full.
        reason: why they stay.
        owner: who repairs them.
        expires: last day on which they fail nothing.
    """

    kind: str
    subjects: Sequence[str]
    reason: str
    owner: str
    expires: date

    def wrong_on(self, today: date) -> str | None:
        """Why the gap covers nothing on a day; None where it does."""
        if today > self.expires:
            return f"expired on {self.expires} ({self.owner}): repair it, or say anew why not"
        if self.expires - today > LONGEST:
            return f"ends on {self.expires}, more than {LONGEST.days} days ahead"
        return None


def parse_gaps(value: Any) -> tuple[Gap, ...]:
    """Parses the gaps of a declaration.

    Args:
        value: what `gaps` holds.

    Returns:
        The gaps, in order.

    Raises:
        ValueError: it is not as this module says; the message says which gap, from 1.
    """
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise ValueError("a list of tables with " + ", ".join(_KEYS))
    gaps = tuple(_gap(f"gap {number}", entry) for number, entry in enumerate(value, start=1))
    named = [(gap.kind, subject) for gap in gaps for subject in gap.subjects]
    for kind, subject in named:
        if named.count((kind, subject)) > 1:
            raise ValueError(f"{kind} of {subject} is declared twice")
    return gaps


def _gap(place: str, entry: Mapping[str, Any]) -> Gap:
    if set(entry) != set(_KEYS):
        odd = sorted(set(entry) ^ set(_KEYS))
        raise ValueError(f"{place}: has the keys {', '.join(_KEYS)}; wrong or missing: {odd}")
    if entry["kind"] not in KINDS:
        raise ValueError(f"{place}: kind is one of {', '.join(KINDS)}, not {entry['kind']!r}")
    for key in ("reason", "owner"):
        if not isinstance(entry[key], str) or not entry[key].strip():
            raise ValueError(f"{place}: {key} is a text that says it, not {entry[key]!r}")
    subjects = entry["subjects"]
    if not isinstance(subjects, list) or not subjects:
        raise ValueError(f"{place}: subjects is a list of what golden health names")
    if not all(isinstance(subject, str) and subject for subject in subjects):
        raise ValueError(f"{place}: subjects is a list of texts, not {subjects!r}")
    expires = entry["expires"]
    if not isinstance(expires, date) or isinstance(expires, datetime):
        raise ValueError(f"{place}: expires is a day such as 2027-03-31, not {expires!r}")
    return Gap(
        kind=entry["kind"],
        subjects=tuple(subjects),
        reason=entry["reason"].strip(),
        owner=entry["owner"].strip(),
        expires=expires,
    )
