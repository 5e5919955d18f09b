"""Whether the coverage of a lane has fallen below the accepted figure, told without a run.

If the cases were measured on this very code (`runs/`), that says so. Otherwise the accepted file
does: a line counts as long as it has not changed and a case that runs it is still declared as it
was. What nobody has measured counts on neither side.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from validation.coverage.document import FILE, Figure, Measured, in_words, ranges, read_measured
from validation.coverage.present import is_of, latest_measurement, present_lines
from validation.files import DamagedFileError

# Shares are compared as they are printed: Python versions count a statement here and there.
_DIGITS = 3
# Of the statements, so many may be new or changed before the figure says nothing any more.
_MOST_UNMEASURED = 0.1
_SHOWN = 3


def fallen(root: Path, lane: str, digests: Mapping[str, str]) -> list[str]:
    """What is wrong with the coverage of a lane.

    Args:
        root: the checkout, with `goldens/`.
        lane: of the cases.
        digests: of the declarations of its cases, by name.

    Returns:
        A message for each problem; empty where there is none, or where nothing was accepted.
    """
    path = accepted_file(root, lane)
    if not path.exists():
        return []
    try:
        accepted = read_measured(path)
    except DamagedFileError as error:
        return [str(error)]
    latest = latest_measurement(root, lane)
    again = f"golden coverage --lane {lane} --accept --reason TEXT"
    if latest is not None and is_of(latest, root):
        return _compared(accepted.lines, latest.lines, _missed(latest), again)
    unchanged = {name for name, case in accepted.cases.items() if digests.get(name) == case.digest}
    now, missed, unmeasured = _now(root, accepted, unchanged)
    found = _compared(accepted.lines, now, missed, again)
    if unmeasured > _MOST_UNMEASURED * (now.total + unmeasured):
        found.append(
            f"{unmeasured} of {now.total + unmeasured} statements have changed since coverage was "
            f"measured, so that its figure says little: {again}"
        )
    return found


def accepted_file(root: Path, lane: str) -> Path:
    """Where a lane's accepted measurement is."""
    return root / "goldens" / lane / FILE


def _compared(
    accepted: Figure, now: Figure, missed: Mapping[str, list[tuple[int, int]]], again: str
) -> list[str]:
    if round(now.share, _DIGITS) >= round(accepted.share, _DIGITS):
        return []
    worst = sorted(missed, key=lambda name: -sum(b - a + 1 for a, b in missed[name]))[:_SHOWN]
    places = "; ".join(f"{name}: {in_words(missed[name], 4)}" for name in worst)
    return [
        f"the cases run {now} of the lines, and {accepted} were accepted ({places}): have a case "
        f"run them, or accept the fall: {again}"
    ]


def _missed(measured: Measured) -> dict[str, list[tuple[int, int]]]:
    return {name: file.missed for name, file in measured.files.items() if file.missed}


def _now(
    root: Path, accepted: Measured, unchanged: Collection[str]
) -> tuple[Figure, dict[str, list[tuple[int, int]]], int]:
    """The figure of what was measured and still stands, what it misses, how much is unmeasured."""
    covered = total = unmeasured = 0
    missed = {}
    kept = frozenset(unchanged)
    for name, file in accepted.files.items():
        if not (root / name).is_file():
            continue
        lines = present_lines(root, name, file)
        hit = {line for line, by in lines.measured.items() if by & kept}
        covered, total = covered + len(hit), total + len(lines.measured)
        unmeasured += len(lines.unmeasured)
        gone = ranges(sorted(lines.measured), lines.measured.keys() - hit)
        if gone:
            missed[name] = gone
    return Figure(covered, total), missed, unmeasured
