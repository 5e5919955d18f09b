"""What the report shows of coverage: the last measurement of this code, or the accepted one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from validation.coverage.document import FileCoverage, Measured, in_words
from validation.coverage.fall import accepted_file
from validation.coverage.present import best_known, is_of
from validation.files import DamagedFileError
from validation.report.page import CoverageView, Item, MissedView
from validation.report.wording import clean

_RANGES = 20


def coverage_of(run_dir: Path, lane: str) -> CoverageView | None:
    """The view of a lane's coverage.

    Args:
        run_dir: folder of the check, in the repository's `runs/`.
        lane: of the check.

    Returns:
        The view; None where nobody has measured the coverage, its file is damaged, or the check's
        folder is not in `runs/`.
    """
    root = run_dir.parent.parent
    if run_dir.parent.name != "runs":
        return None
    try:
        known = best_known(root, lane, accepted_file(root, lane))
    except DamagedFileError:  # golden health says so
        return None
    return None if known is None else _view(known, exact=is_of(known, root))


def _view(known: Measured, *, exact: bool) -> CoverageView:
    missed = {name: file for name, file in known.files.items() if file.missed}
    order = sorted(missed, key=lambda name: (-_count(missed[name]), name))
    when = str(known.provenance.get("time", ""))[:16].replace("T", " ")
    of = "this code" if exact else "the code as it was then"
    return CoverageView(
        headline=f"{known.lines} lines, {known.branches} branches, {known.functions} functions run",
        note=clean(f"Measured {when} on {of}, by {len(known.cases)} cases: golden coverage."),
        files=[
            MissedView(
                clean(name),
                f"{len(missed[name].lines) - _count(missed[name])} of {len(missed[name].lines)}",
                in_words(missed[name].missed, _RANGES),
            )
            for name in order
        ],
        fields=[
            Item(clean(name), clean(_value_and_reason(said)), mono=True)
            for name, said in known.defaults.items()
        ],
    )


def _value_and_reason(said: Mapping[str, Any]) -> str:
    """`"auto" (the reason)` of a field that no case varies."""
    value = json.dumps(said["value"])
    return f"{value} ({said['reason']})" if "reason" in said else value


def _count(file: FileCoverage) -> int:
    """Statements that no case runs."""
    return sum(not by for by in file.lines.values())
