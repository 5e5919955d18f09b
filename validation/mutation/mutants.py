"""The mutants of a checkout, in an order that a seed decides, with the cases that can kill each."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from validation.cases import CaseError
from validation.coverage.document import Measured
from validation.coverage.present import present_lines
from validation.files import digest
from validation.mutation.operators import Edit, edits, is_python

_CONTEXT = 1


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        id: the same in every checkout where the function around it has the same such places.
        name: of the file, relative to the repository.
        edit: the change.
        cases: that run the changed line, the cheapest first; those that only import it come last.
    """

    id: str
    name: str
    edit: Edit
    cases: Sequence[str]

    def text(self, root: Path) -> bytes:
        """The file as the mutant has it."""
        return self.edit.applied((root / self.name).read_bytes())

    def diff(self, root: Path) -> str:
        """What is changed, with a line around it."""
        before = (root / self.name).read_bytes()
        old, new = (b.decode(errors="replace").splitlines() for b in (before, self.text(root)))
        lines = difflib.unified_diff(old, new, self.name, self.name, n=_CONTEXT, lineterm="")
        return "\n".join(lines)


def drawn(
    root: Path,
    names: Sequence[str],
    measured: Measured,
    seed: int,
    patterns: Sequence[str] = (),
    judges: Collection[str] | None = None,
) -> Iterator[Mutant]:
    """The mutants of the gated files, in the order of a seed: each is as likely as any other.

    Args:
        root: the checkout.
        names: of the gated files.
        measured: which cases run which lines.
        seed: decides the order.
        patterns: of paths to keep to; empty is all.
        judges: names of the cases that may kill; None is all that were measured.

    Yields:
        Mutants that compile, those on lines that no case runs among them.

    Raises:
        CaseError: no file is left.
    """
    chosen = [n for n in names if not patterns or any(fnmatchcase(n, p) for p in patterns)]
    if not chosen:
        raise CaseError(f"--file {' '.join(patterns)}: no gated file matches, as {names[0]} would")
    able = frozenset(measured.cases if judges is None else judges) & measured.cases.keys()
    found = [m for name in chosen for m in _of_file(root, name, measured, able)]
    for mutant in sorted(found, key=lambda m: digest(f"{seed}:{m.id}".encode())):
        if is_python(mutant.text(root)):
            yield mutant


def _of_file(root: Path, name: str, measured: Measured, able: frozenset[str]) -> Iterator[Mutant]:
    content = (root / name).read_bytes()
    known = present_lines(root, name, measured.files.get(name)).measured
    entered = _entered(content, known)
    seen: Counter[tuple[object, ...]] = Counter()
    for edit in edits(content):
        place = (edit.function, edit.operator, content[edit.start : edit.end], edit.text)
        seen[place] += 1
        by = known.get(edit.line, frozenset()) & able
        yield Mutant(
            digest(repr((name, place, seen[place])).encode())[:12],
            name,
            edit,
            sorted(by, key=lambda c: (c not in entered, measured.cases[c].seconds, c)),
        )


def _entered(content: bytes, known: Mapping[int, frozenset[str]]) -> frozenset[str]:
    """Cases that run more of a file than all of them do by importing it."""
    every = list(known.values())
    shared = frozenset.intersection(*filter(None, every)) if any(every) else frozenset()
    more = frozenset().union(*(by for by in every if by != shared))
    return more or shared
