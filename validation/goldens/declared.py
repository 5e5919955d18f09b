"""Movements of an acceptance: grouped by metric, declared by `--expect`, ready to paste."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from glob import escape
from itertools import takewhile

from validation.goldens.changes import Change
from validation.trace import RecordKind

FORM = "CASE:METRIC:up|down|any[:MAXREL]"


@dataclass(frozen=True)
class Expectation:
    """`CASE:METRIC:up|down|any[:MAXREL]`: movement that an acceptance declares.

    Attributes:
        case: name of the case.
        metric: name or pattern (`*`) of what moves.
        direction: `up`, `down` or `any`.
        largest: bound of the relative change; inf without one.
    """

    case: str
    metric: str
    direction: str
    largest: float = math.inf

    @classmethod
    def parse(cls, text: str) -> Expectation:
        """Parses a declaration as the command line has it.

        Args:
            text: `CASE:METRIC:up|down|any[:MAXREL]`.

        Returns:
            The declaration.

        Raises:
            ValueError: it is malformed; the message says how.
        """
        words = text.split(":")
        bound = math.inf
        try:
            if words[-1] not in ("up", "down", "any"):
                bound = float(words.pop())
            case, *metric, direction = words
        except ValueError:
            case, metric, direction = "", [], ""
        name = ":".join(metric)
        if not (case and name and direction in ("up", "down", "any") and bound > 0):
            raise ValueError(f"{text!r}: expected {FORM}")
        return cls(case, name, direction, bound)

    def __str__(self) -> str:
        """The command line's form."""
        bound = "" if math.isinf(self.largest) else f":{self.largest!r}"
        return f"{self.case}:{self.metric}:{self.direction}{bound}"

    def covers(self, case: str, change: Change) -> bool:
        """Whether this declaration allows a change."""
        return (
            self.case == case
            and fnmatchcase(change.metric, self.metric)
            and self.direction in ("any", change.direction)
            and not change.largest > self.largest
        )


@dataclass(frozen=True)
class Movement:
    """Changes of one case that are of one metric: a curve, or a kind of tensor in many modules.

    Attributes:
        pattern: of their names, as `--expect` takes it; the narrowest with one `*`.
        changes: in execution order; either all have a size or none.
    """

    pattern: str
    changes: Sequence[Change]

    @property
    def records(self) -> int:
        """How many records differ."""
        return sum(change.count for change in self.changes)

    @property
    def largest(self) -> float:
        """The largest relative change; inf of facts and of what one side alone has."""
        return max(change.largest for change in self.changes)

    @property
    def direction(self) -> str:
        """`up` or `down` if all of them go there, else `any`."""
        found = {change.direction for change in self.changes}
        return found.pop() if len(found) == 1 else "any"

    def declared(self, case: str) -> Expectation:
        """The declaration that covers every one of the changes."""
        return Expectation(case, self.pattern, self.direction, _rounded_up(self.largest))

    def describe(self) -> str:
        """One line."""
        first = self.changes[0]
        if len(self.changes) == 1 and self.pattern == escape(first.metric):
            return first.describe()
        arrow = "" if self.direction == "any" else f" {self.direction}"
        size = "" if math.isinf(self.largest) else f", largest relative change {self.largest:.3g}"
        return (
            f"{self.pattern}: {self.records} record(s) of {len(self.changes)} names "
            f"differ{arrow} from step {first.first.step}{size}"
        )


def movements(changes: Iterable[Change]) -> list[Movement]:
    """Groups changes of one case by metric, in execution order of each group's first."""
    groups: dict[tuple[str, bool], list[Change]] = {}
    for change in changes:
        key = (_kind(change), math.isfinite(change.largest))
        groups.setdefault(key, []).append(change)
    return [
        Movement(_pattern(kind, [c.metric for c in found]), found)
        for (kind, _), found in groups.items()
    ]


def undeclared(
    case: str, changes: Iterable[Change], expected: Sequence[Expectation]
) -> list[Movement]:
    """The movements of a case that no declaration allows."""
    return movements(c for c in changes if not any(e.covers(case, c) for e in expected))


def unknown(expected: Expectation, cases: Collection[str], metrics: Collection[str]) -> str | None:
    """Says why no record can match a declaration.

    Args:
        expected: the declaration.
        cases: that would be accepted.
        metrics: names of every record of the declaration's case.

    Returns:
        The reason, or None where some record can.
    """
    if expected.case not in cases:
        close = get_close_matches(expected.case, cases, 1)
        hint = f"did you mean {close[0]}?" if close else f"accepted are: {', '.join(cases)}"
        return f"case {expected.case} is not among what is accepted; {hint}"
    if any(fnmatchcase(metric, expected.metric) for metric in metrics):
        return None
    close = get_close_matches(expected.metric, metrics, 1, 0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{expected.case} has no record whose name is {expected.metric}{hint}"


def _kind(change: Change) -> str:
    """What a change is about, whatever module or rank it is of; a part of its name."""
    if change.first.kind in (RecordKind.CURVE, RecordKind.TABLE):
        return re.split(r"[/@]", change.metric)[0]
    parts = [part for part in str(change.first.tensor).split(".") if not part.isdigit()]
    return parts[-1] if parts else str(change.first.tensor)


def _pattern(kind: str, names: Sequence[str]) -> str:
    """The names' common beginning and end, in whole words, with `*` between; never `*` alone."""
    if len(set(names)) == 1:
        return escape(names[0])
    split = [re.split(r"(?<=[./@])|(?=[./@])", name) for name in names]
    head = _common(split)
    tail = _common([words[len(head) :][::-1] for words in split])[::-1]
    if not head and not tail:
        return f"*{escape(kind)}*"
    return f"{escape(''.join(head))}*{escape(''.join(tail))}"


def _common(lists: Sequence[Sequence[str]]) -> list[str]:
    """The words with which all lists begin."""
    columns = takewhile(lambda words: len(set(words)) == 1, zip(*lists, strict=False))
    return [words[0] for words in columns]


def _rounded_up(value: float) -> float:
    """A number of two digits, hardly larger; no bound for what has no size."""
    if not math.isfinite(value) or value <= 0:
        return math.inf
    rounded = (float(f"{value:.1e}"), float(f"{1.06 * value:.1e}"), value)
    return next(bound for bound in rounded if bound >= value)
