"""Lines of a change that no selected case runs: what a check of it cannot see.

A changed statement counts as run where a measurement of this very code says so. Without one, what
it replaces decides, or what stands beside it in its block, as the base was measured.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from validation.coverage.document import FileCoverage, Measured, Range, blob_id, in_words, ranges
from validation.coverage.present import carried, statements_of, text_lines
from validation.running.source import blob, git


@dataclass(frozen=True)
class Blind:
    """Changed lines of a file that no selected case runs.

    Attributes:
        name: of the file.
        lines: as they are in the working tree.
        why: empty where the measurement says so.
    """

    name: str
    lines: Sequence[Range]
    why: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {in_words(self.lines)}" + (f" ({self.why})" if self.why else "")


def blind_lines(
    root: Path, base: str, known: Measured, selected: Collection[str], gated: Collection[str]
) -> list[Blind]:
    """What of a change no selected case runs.

    Args:
        root: the checkout.
        base: revision that the change leaves.
        known: the measurement.
        selected: names of the cases that are run.
        gated: files whose coverage counts.

    Returns:
        The files that have such lines, in the order of their names.
    """
    fork = git(root, "merge-base", base, "HEAD").strip()
    found = []
    for name in sorted(_changed(root, fork) & set(gated)):
        if not (root / name).is_file():
            continue
        content, before = (root / name).read_bytes(), blob(root, f"{fork}:{name}") or b""
        of_file = known.files.get(name)
        exact = of_file is not None and of_file.blob == blob_id(content)
        now = of_file.lines if of_file is not None and exact else {}
        runs = _runs_before(root, before, of_file)
        ends = statements_of(content)
        every = list(now) if exact else list(ends)
        missed: set[int] = set()
        for hunk in _hunks(before, content):
            inside = [n for n in every if n <= hunk.last and ends.get(n, n) >= hunk.first]
            if exact and inside:
                missed |= {line for line in inside if not _run(now[line], selected)}
            elif not any(_run(by, selected) for by in _of_hunk(hunk, runs, before, content)):
                above = [line for line in every if line < hunk.first]
                gone = not inside and hunk.replaces(runs)
                missed |= set(above[-1:] if gone else inside)
        if missed:
            why = "" if exact else "not measured since it was changed"
            found.append(Blind(name, ranges(every, missed), why))
    return found


def warning(found: Sequence[Blind]) -> str:
    """What a check says of them; empty where there are none."""
    if not found:
        return ""
    places = "; ".join(map(str, found))
    return f"warning: the change touches lines that no selected case runs: {places}"


def _run(by: Collection[str], selected: Collection[str]) -> bool:
    return not set(by).isdisjoint(selected)


def _changed(root: Path, base: str) -> set[str]:
    names = git(root, "diff", "--name-only", "--no-renames", "-z", base, "--", "*.py")
    new = git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py")
    return {name for name in (names + new).split("\0") if name}


@dataclass(frozen=True)
class _Hunk:
    """Lines `first..last` now, in place of `old_first..old_last`; either may be empty."""

    first: int
    last: int
    old_first: int
    old_last: int

    def replaces(self, runs: Mapping[int, object]) -> bool:
        """Whether any of these statements stood where the hunk is."""
        return any(self.old_first <= line <= self.old_last for line in runs)


def _hunks(before: bytes, after: bytes) -> list[_Hunk]:
    old, new = text_lines(before), text_lines(after)
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    return [
        _Hunk(new_start + 1, new_end, old_start + 1, old_end)
        for tag, old_start, old_end, new_start, new_end in matcher.get_opcodes()
        if tag != "equal"
    ]


def _runs_before(
    root: Path, before: bytes, of_file: FileCoverage | None
) -> Mapping[int, frozenset[str]]:
    """Cases that run each statement of the base's file; nothing where nobody has measured it."""
    if of_file is None:
        return {}
    if of_file.blob == blob_id(before):
        return of_file.lines
    measured = blob(root, of_file.blob)
    return {} if measured is None else carried(of_file.lines, measured, before)


def _of_hunk(
    hunk: _Hunk, runs: Mapping[int, frozenset[str]], before: bytes, after: bytes
) -> list[frozenset[str]]:
    """Cases of each statement that a hunk replaces, else of its neighbours in their block.

    In a block of its own it goes by what leads there.
    """
    ends = statements_of(before)
    replaced = [
        by for n, by in runs.items() if n <= hunk.old_last and ends.get(n, n) >= hunk.old_first
    ]
    if replaced:
        return replaced
    old, new = text_lines(before), text_lines(after)
    texts = [text for text in new[hunk.first - 1 : hunk.last] if text.strip()]
    if not texts:
        return []
    depth = _depth(texts[0])
    start = _function_around(before, hunk.old_first)
    above = sorted((n for n in runs if start <= n < hunk.old_first), reverse=True)
    below = sorted(n for n in runs if n >= hunk.old_first)
    near = []
    for lines in (above, below):
        outside = next((n for n in lines if _depth(old[n - 1]) <= depth), None)
        if outside is not None and _depth(old[outside - 1]) == depth:
            near.append(outside)
    near = near or [n for n in above if _depth(old[n - 1]) < depth][:1]
    return [runs[n] for n in near]


def _depth(text: str) -> int:
    return len(text) - len(text.lstrip())


def _function_around(content: bytes, line: int) -> int:
    """First line of the innermost function's body around a line; 1 outside of functions."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return 1
    around = [
        node.body[0].lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.lineno < line <= (node.end_lineno or node.lineno) + 1
    ]
    return max(around, default=1)
