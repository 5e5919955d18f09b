"""Whether an owner may accept what loosens the gate: `python ci/loosening.py FOLDER`.

FOLDER holds the `verdict.json` files of one gate, which a stranger's pull request may have written:
they are read as data (`verdict_table`). Prints a decision and why, and leaves `decision=...` in the
job's outputs (GITHUB_OUTPUT):

    none        nothing loosens the gate: its verdict alone decides
    acceptable  something does, and every verdict would be PASS with it: an owner decides
    refused     something does, and a verdict would not be PASS even so

Exits with 0, or 2 where there is no verdict or a file is none. Needs the standard library alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from verdict_table import Table, VerdictError, read

MAX_FILES = 8


def main() -> int:
    """Prints the decision; returns 0, or 2 for what is wrong."""
    if len(sys.argv) != 2:
        print("loosening: usage: python ci/loosening.py FOLDER", file=sys.stderr)
        return 2
    try:
        decision, reasons = decide(read_all(Path(sys.argv[1])))
    except (VerdictError, OSError) as error:
        print(f"loosening: {error}", file=sys.stderr)
        return 2
    print("\n".join([decision, *reasons]))
    outputs = os.environ.get("GITHUB_OUTPUT")
    if outputs:
        with Path(outputs).open("a", encoding="utf-8") as file:
            file.write(f"decision={decision}\n")
    return 0


def read_all(folder: Path) -> list[Table]:
    """Every verdict below a folder.

    Raises:
        VerdictError: there is none, there are too many, or one is none: empty, a link, no verdict.
        OSError: a file cannot be read.
    """
    files = sorted(folder.rglob("verdict.json"))
    link = next((path for path in files if path.is_symlink() or not path.is_file()), None)
    if link is not None:
        raise VerdictError(f"{link}: not a regular file")
    if not files:
        raise VerdictError(f"{folder}: no verdict; the gate ended before it had one")
    if len(files) > MAX_FILES:
        raise VerdictError(f"{folder}: more than {MAX_FILES} verdicts")
    return [read(path) for path in files]


def decide(tables: Sequence[Table]) -> tuple[str, list[str]]:
    """The decision on all checks of one gate, and a line for each reason."""
    loosened = [
        f"{table.lane}: {found.kind} {found.case}: {found.text}"
        for table in tables
        for found in table.loosened
    ]
    if not loosened:
        return "none", [f"{table.lane}: {table.verdict}" for table in tables]
    short = [
        f"{table.lane}: {table.if_accepted or table.verdict} even if it were accepted"
        for table in tables
        if not table.acceptable and (table.loosened or table.verdict != "PASS")
    ]
    return ("refused" if short else "acceptable"), [*loosened, *short]


if __name__ == "__main__":
    sys.exit(main())
