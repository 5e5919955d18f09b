"""Merges what the processes of every case executed, and asks coverage.py what they did not.

Lines that the warm parent had executed when a run was forked from it count for the run where they
are module-level code: definitions, constants, class bodies. A function that only the parent has
called, as it imported or warmed up, is not run by the case.
"""

from __future__ import annotations

import ast
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coverage

from validation.coverage.document import FileCoverage, blob_id
from validation.coverage.files import GatedFiles
from validation.running.measured import IMPORTED

Arcs = Mapping[str, set[tuple[int, int]]]
"""Absolute path -> pairs of lines that were executed one after the other."""


@dataclass(frozen=True)
class Counts:
    """What a case alone runs: branches and functions."""

    branches: int
    functions: int


def executed(folder: Path, files: GatedFiles, root: Path) -> Arcs:
    """What a case's processes executed of the gated files.

    Args:
        folder: with their data files.
        files: of the checkout.
        root: the checkout.

    Returns:
        The executed pairs of lines, by absolute path; a file that no process executed is missing.
    """
    found: dict[str, set[tuple[int, int]]] = {}
    wanted = {str(root / name) for name in files.names}
    for path in sorted(folder.iterdir()):
        data = coverage.CoverageData(basename=str(path))
        data.read()
        for name in data.measured_files() & wanted:
            arcs = set(data.arcs(name) or ())
            if path.name.startswith(f"{IMPORTED}."):
                inside = _lines_in_functions(Path(name).read_bytes())
                arcs = {arc for arc in arcs if not ({abs(arc[0]), abs(arc[1])} & inside)}
            found.setdefault(name, set()).update(arcs)
    return found


def merged(
    root: Path, files: GatedFiles, by_case: Mapping[str, Arcs]
) -> tuple[dict[str, FileCoverage], dict[str, Counts]]:
    """Each file's coverage, and what of branches and functions each case has of it.

    Args:
        root: the checkout, unchanged since the runs.
        files: of the checkout.
        by_case: what each case executed.

    Returns:
        Each file's coverage, by its path relative to the checkout, and each case's counts.
    """
    with tempfile.TemporaryDirectory(prefix="golden-coverage-") as folder:
        whole = coverage.Coverage(
            data_file=str(Path(folder) / "data"), branch=True, config_file=False, messages=False
        )
        data = whole.get_data()
        for case, arcs in by_case.items():
            data.set_context(case)
            data.add_arcs(arcs)
        data.set_context("")
        data.touch_files([str(root / name) for name in files.names])
        document = _analysed(whole, root, Path(folder))
        found = {name: _file(root, name, document[name], files) for name in files.names}
        counts = {}
        for case in by_case:
            alone = _analysed(whole, root, Path(folder), case)
            entries = [_file(root, name, alone[name], files) for name in files.names]
            counts[case] = Counts(
                sum(entry.branches[0] - len(entry.branches[1]) for entry in entries),
                sum(entry.functions[0] - len(entry.functions[1]) for entry in entries),
            )
    return found, counts


def _analysed(
    whole: coverage.Coverage, root: Path, folder: Path, case: str | None = None
) -> dict[str, Any]:
    """What coverage.py's JSON report has under `files`, by path relative to the checkout."""
    report = folder / "report.json"
    whole.json_report(
        outfile=str(report),
        show_contexts=case is None,
        contexts=None if case is None else [f"^{case.replace('.', '[.]')}$"],
        ignore_errors=False,
    )
    entries = json.loads(report.read_bytes())["files"]
    here = Path.cwd()
    return {str((here / name).resolve().relative_to(root)): e for name, e in entries.items()}


def _file(root: Path, name: str, entry: Mapping[str, Any], files: GatedFiles) -> FileCoverage:
    content = (root / name).read_bytes()
    left_out = files.left_out(name, content.decode())
    regions = {n: e for n, e in entry["functions"].items() if n}
    contexts = {int(line): by for line, by in entry.get("contexts", {}).items()}
    lines: dict[int, frozenset[str]] = dict.fromkeys(entry["missing_lines"], frozenset())
    every = sorted({*entry["executed_lines"], *entry["missing_lines"], *entry["excluded_lines"]})
    after = dict(itertools.pairwise([*every, max([*every, *contexts], default=0) + 1]))
    for line in entry["executed_lines"]:
        # Of a statement of several lines, those that were executed may not have the first.
        within = (contexts.get(inner, ()) for inner in range(line, after[line]))
        lines[line] = frozenset().union(*within) - {""}
    kept = {line: by for line, by in sorted(lines.items()) if line not in left_out}
    taken = [pair for pair in entry["executed_branches"] if not left_out & set(pair)]
    missed = [(a, b) for a, b in entry["missing_branches"] if not left_out & {a, b}]
    bodies = {n: e for n, e in regions.items() if set(_lines_of(e)) - left_out}
    return FileCoverage(
        blob_id(content),
        kept,
        (len(taken) + len(missed), missed),
        (len(bodies), [n for n, e in bodies.items() if not e["executed_lines"]]),
    )


def _lines_of(region: Mapping[str, Any]) -> Sequence[int]:
    return [*region["executed_lines"], *region["missing_lines"]]


def _lines_in_functions(content: bytes) -> set[int]:
    """Lines of the bodies of functions, not of what stands around them."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found |= set(range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1))
    return found
