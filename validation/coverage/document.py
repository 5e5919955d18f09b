"""What a measurement leaves: which cases run each line, what nothing runs, as one JSON file.

`runs/<folder>/coverage.json` is the last measurement; `goldens/<lane>/coverage.json` the accepted
one, whose figure must not fall. Lines belong to the content that was measured, which the file names
by the id that git has for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from validation.files import DamagedFileError, check_schema, decode_json, read_file

FILE = "coverage.json"
_SCHEMA = 1

Range = tuple[int, int]


@dataclass(frozen=True)
class Figure:
    """So many of so many."""

    covered: int
    total: int

    @property
    def share(self) -> float:
        """Between 0 and 1; 1 of nothing."""
        return self.covered / self.total if self.total else 1.0

    def to_json(self) -> dict[str, int]:
        """As documents have it."""
        return {"covered": self.covered, "total": self.total}

    def __str__(self) -> str:
        return f"{self.covered} of {self.total} ({self.share:.1%})"


@dataclass(frozen=True)
class FileCoverage:
    """One file.

    Attributes:
        blob: git's id of the content that was measured.
        lines: first line of each statement -> names of the cases that run it.
        branches: how many, as (line, line), and which none of the cases takes.
        functions: how many, and which none of the cases enters.
    """

    blob: str
    lines: Mapping[int, frozenset[str]]
    branches: tuple[int, Sequence[tuple[int, int]]] = (0, ())
    functions: tuple[int, Sequence[str]] = (0, ())

    @property
    def missed(self) -> list[Range]:
        """Ranges of lines whose statements no case runs."""
        return ranges(sorted(self.lines), {line for line, by in self.lines.items() if not by})


@dataclass(frozen=True)
class CaseCoverage:
    """One case.

    Attributes:
        digest: of the case's declaration.
        seconds: how long its run took, measured.
        lines: statements that it runs.
        own: of these, those that no other case runs.
        branches: that it takes.
        functions: that it enters.
    """

    digest: str
    seconds: float
    lines: int
    own: int
    branches: int
    functions: int

    def to_json(self) -> dict[str, Any]:
        """What `by_case` says of it."""
        return {
            "covered": self.lines,
            "own": self.own,
            "branches": self.branches,
            "functions": self.functions,
            "seconds": round(self.seconds, 1),
        }


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measurement.

    Attributes:
        lane: where the cases ran.
        files: by path.
        cases: by name.
        skipped: case -> why it did not run.
        omitted: what is not measured -> why.
        defaults: field that no case varies -> its default, its one value, and a reason if any.
        provenance: when, of which code, and with what it was measured.
    """

    lane: str
    files: Mapping[str, FileCoverage]
    cases: Mapping[str, CaseCoverage]
    skipped: Mapping[str, str] = field(default_factory=dict)
    omitted: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lines(self) -> Figure:
        """Statements."""
        every = [by for file in self.files.values() for by in file.lines.values()]
        return Figure(sum(bool(by) for by in every), len(every))

    @property
    def branches(self) -> Figure:
        """Branches."""
        total = sum(file.branches[0] for file in self.files.values())
        return Figure(total - sum(len(f.branches[1]) for f in self.files.values()), total)

    @property
    def functions(self) -> Figure:
        """Functions."""
        total = sum(file.functions[0] for file in self.files.values())
        return Figure(total - sum(len(f.functions[1]) for f in self.files.values()), total)

    def to_json(self) -> dict[str, Any]:
        """The one object that `golden coverage --json` prints."""
        branches = {n: [list(b) for b in f.branches[1]] for n, f in self.files.items()}
        functions = {n: list(f.functions[1]) for n, f in self.files.items()}
        return {
            "lane": self.lane,
            **self.lines.to_json(),
            "files": {name: [list(r) for r in file.missed] for name, file in self.files.items()},
            "branches": {
                **self.branches.to_json(),
                "missed": {name: missed for name, missed in branches.items() if missed},
            },
            "functions": {
                **self.functions.to_json(),
                "missed": {name: missed for name, missed in functions.items() if missed},
            },
            "by_case": {name: case.to_json() for name, case in self.cases.items()},
            "skipped": dict(self.skipped),
            "omitted": dict(self.omitted),
            "defaults": dict(self.defaults),
        }

    def document(self) -> dict[str, Any]:
        """What is stored."""
        names = sorted(self.cases)  # as JSON's keys are written
        return {
            "schema": _SCHEMA,
            "lane": self.lane,
            **self.lines.to_json(),
            "cases": {
                name: {**case.to_json(), "digest": case.digest} for name, case in self.cases.items()
            },
            "files": {name: _encode(file, names) for name, file in self.files.items()},
            "skipped": dict(self.skipped),
            "omitted": dict(self.omitted),
            "defaults": dict(self.defaults),
            "provenance": dict(self.provenance),
        }


def read_measured(path: Path) -> Measured:
    """What a file holds.

    Args:
        path: of the file, which holds what `Measured.document` gives.

    Returns:
        The measurement.

    Raises:
        DamagedFileError: it is missing, or no measurement; its path comes first.
    """
    document = decode_json(read_file(path), path)
    check_schema(document, path)
    try:
        names = sorted(document["cases"])
        measured = Measured(
            lane=str(document["lane"]),
            files={str(name): _decode(entry, names) for name, entry in document["files"].items()},
            cases={
                str(name): CaseCoverage(
                    str(entry["digest"]),
                    float(entry["seconds"]),
                    int(entry["covered"]),
                    int(entry["own"]),
                    int(entry["branches"]),
                    int(entry["functions"]),
                )
                for name, entry in document["cases"].items()
            },
            skipped={str(k): str(v) for k, v in document["skipped"].items()},
            omitted={str(k): str(v) for k, v in document["omitted"].items()},
            defaults=dict(document["defaults"]),
            provenance=dict(document["provenance"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DamagedFileError(
            f"{path}: no measurement of coverage: {error!r}; measure again with `golden coverage`"
        ) from error
    lines = measured.lines
    if (document.get("covered"), document.get("total")) != (lines.covered, lines.total):
        raise DamagedFileError(
            f"{path}: its figure is not that of its lines ({lines}); measure again with "
            "`golden coverage`"
        )
    return measured


def _encode(file: FileCoverage, names: Sequence[str]) -> dict[str, Any]:
    """A file's entry: cases as bits of a number, in the order of the document."""
    bits = {name: 1 << place for place, name in enumerate(names)}
    lines: dict[str, list[int]] = {}
    for line, by in sorted(file.lines.items()):
        lines.setdefault(f"{sum(bits[name] for name in by):x}", []).append(line)
    return {
        "blob": file.blob,
        "lines": {mask: _text(found) for mask, found in sorted(lines.items())},
        "branches": [file.branches[0], " ".join(f"{a}>{b}" for a, b in file.branches[1])],
        "functions": [file.functions[0], " ".join(file.functions[1])],
    }


def _decode(entry: Mapping[str, Any], names: Sequence[str]) -> FileCoverage:
    lines: dict[int, frozenset[str]] = {}
    for mask, text in entry["lines"].items():
        number = int(mask, 16)
        by = frozenset(name for place, name in enumerate(names) if number >> place & 1)
        lines |= dict.fromkeys(_numbers(text), by)
    branches = [tuple(map(int, pair.split(">"))) for pair in entry["branches"][1].split()]
    return FileCoverage(
        str(entry["blob"]),
        dict(sorted(lines.items())),
        (int(entry["branches"][0]), [(one, other) for one, other in branches]),
        (int(entry["functions"][0]), entry["functions"][1].split()),
    )


def _text(lines: Sequence[int]) -> str:
    """Numbers as `1-4,6`; those in between are no statements of the group, so they part it."""
    return ",".join(
        str(first) if first == last else f"{first}-{last}" for first, last in ranges(lines)
    )


def _numbers(text: str) -> Iterable[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def ranges(lines: Sequence[int], chosen: Iterable[int] | None = None) -> list[Range]:
    """Ranges of lines, in their order.

    Args:
        lines: sorted numbers.
        chosen: of these, the ones to tell of: a range then goes on over whatever is no line, and
            ends before the next line that is not chosen. Default: all, and a gap ends a range.

    Returns:
        The first and the last line of each range.
    """
    found: list[Range] = []
    wanted = None if chosen is None else set(chosen)
    open_range = False
    for line in lines:
        if wanted is not None and line not in wanted:
            open_range = False
            continue
        if found and (open_range if wanted is not None else found[-1][1] == line - 1):
            found[-1] = (found[-1][0], line)
        else:
            found.append((line, line))
        open_range = True
    return found


def in_words(found: Iterable[Range], most: int = 8) -> str:
    """Ranges as a reader wants them: `3-7, 12`, and how many more."""
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in found]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more


def blob_id(content: bytes) -> str:
    """Git's id of a file's content, in a repository with SHA-1 names."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
