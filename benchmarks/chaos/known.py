"""What the suite finds and is known: shown by name, counted apart, no failure of the night."""

from __future__ import annotations

import re
from dataclasses import dataclass

from benchmarks.chaos.attempt import Attempt


@dataclass(frozen=True)
class Known:
    """Something that is known.

    Attributes:
        kind: pattern of the attempt's kind.
        what: can go wrong.
        text: pattern in the finding.
        reason: what is to be done about it.
    """

    kind: str
    what: str
    text: str
    reason: str


KNOWN: tuple[Known, ...] = ()


def all_known(attempt: Attempt) -> bool:
    """Whether everything that is wrong so far is known, so that an attempt may go on."""
    return all(known_reason(attempt.name, what, text) for what, text in attempt.wrong)


def known_reason(name: str, what: str, text: str) -> str:
    """Why a finding is known; empty where it is not."""
    kind = name.partition(":")[0]
    for known in KNOWN:
        if known.what == what and re.fullmatch(known.kind, kind) and re.search(known.text, text):
            return known.reason
    return ""
