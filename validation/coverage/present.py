"""A measurement, carried over to the files as they are now, without a run.

A file that has not changed is as it was measured. Of one that has, the lines that are still there
are, and the others were measured by nobody; git knows what was measured.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from validation.coverage.document import FILE, FileCoverage, Measured, blob_id, read_measured
from validation.files import DamagedFileError
from validation.running.source import blob


@dataclass(frozen=True)
class PresentLines:
    """The statements of a file as it is now.

    Attributes:
        measured: first line of a statement -> cases that run it.
        unmeasured: first lines of the others.
    """

    measured: Mapping[int, frozenset[str]]
    unmeasured: Sequence[int]


def present_lines(root: Path, name: str, known: FileCoverage | None) -> PresentLines:
    """A file's statements now, with what a measurement knows of them.

    Args:
        root: the checkout.
        name: of the file in it.
        known: of the measurement; None where it has no such file.

    Returns:
        The statements, those that the measurement knows apart from the others.
    """
    content = (root / name).read_bytes()
    if known is not None and known.blob == blob_id(content):
        return PresentLines(known.lines, ())
    statements = statements_of(content)
    before = None if known is None else blob(root, known.blob)
    if known is None or before is None:
        return PresentLines({}, list(statements))
    measured = carried(known.lines, before, content)
    return PresentLines(measured, [line for line in statements if line not in measured])


def carried(
    lines: Mapping[int, frozenset[str]], before: bytes, after: bytes
) -> dict[int, frozenset[str]]:
    """What is known of a file's lines, at where they are in another version of it."""
    old, new = text_lines(before), text_lines(after)
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
    moved = {b.a + n + 1: b.b + n + 1 for b in blocks for n in range(b.size)}
    return {moved[line]: by for line, by in lines.items() if line in moved}


def text_lines(content: bytes) -> list[str]:
    """The lines of a source file, as Python counts them."""
    return content.decode(errors="replace").replace("\r\n", "\n").split("\n")


def statements_of(content: bytes) -> dict[int, int]:
    """First line -> last line of a file's statements, docstrings left out, in their order.

    Of a statement with a block the last line is that before the block. What is no Python has none.
    """
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return {}
    found: dict[int, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and not _is_text(node):
            for decorator in getattr(node, "decorator_list", []):  # a line of its own each
                found[decorator.lineno] = decorator.end_lineno or decorator.lineno
            block = getattr(node, "body", None) or getattr(node, "cases", None)
            last = node.end_lineno or node.lineno
            if block:
                start = getattr(block[0], "lineno", None) or block[0].pattern.lineno
                last = max(node.lineno, start - 1)
            found[node.lineno] = max(last, found.get(node.lineno, last))
    return dict(sorted(found.items()))


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def latest_measurement(root: Path, lane: str, cases: Collection[str] = ()) -> Measured | None:
    """The newest measurement in `runs/` that can be read and has the cases.

    Args:
        root: the checkout.
        lane: of the cases.
        cases: names of those that must be in it; none are all of the lane.

    Returns:
        The measurement; None where there is none.
    """
    for path in sorted((root / "runs").glob(f"*-{lane}-*/{FILE}"), reverse=True):
        try:
            found = read_measured(path)
        except DamagedFileError:
            continue
        enough = found.cases.keys() >= set(cases) if cases else False
        if found.lane == lane and (enough or found.provenance.get("whole") is True):
            return found
    return None


def is_of(measured: Measured, root: Path) -> bool:
    """Whether every measured file is as it was."""
    return all(
        (root / name).is_file() and blob_id((root / name).read_bytes()) == file.blob
        for name, file in measured.files.items()
    )


def best_known(
    root: Path, lane: str, accepted: Path, cases: Collection[str] = ()
) -> Measured | None:
    """What is known of a tree: a measurement of this very code if there is one, or the accepted.

    Args:
        root: the checkout.
        lane: of the cases.
        accepted: the file of the accepted measurement; it need not be there.
        cases: see `latest_measurement`.

    Returns:
        The measurement; None where this code was not measured and nothing was accepted.

    Raises:
        DamagedFileError: it is damaged.
    """
    latest = latest_measurement(root, lane, cases)
    if latest is not None and is_of(latest, root):
        return latest
    return read_measured(accepted) if accepted.exists() else None
