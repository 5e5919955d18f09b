"""`python -m benchmarks.chaos`: makes the attempts and says what became of them."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.chaos import edits, machine, stopped, store, together, workers
from benchmarks.chaos.processes import adopt_orphans
from benchmarks.chaos.repository import States
from benchmarks.chaos.suite import Kind, in_memory, plan, run

KINDS = {
    **{
        name: Kind(make)
        for room in (stopped, workers, machine, together)
        for name, make in room.KINDS.items()
    },
    **{name: Kind(make, weight=0.5) for name, make in store.KINDS.items()},
    **{name: Kind(make, weight=0.0) for name, make in edits.KINDS.items()},
}


def main() -> int:
    """Returns 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--attempts", type=int, default=600, help="of commands (default: 600)")
    parser.add_argument("--edits", type=int, default=500, help="of each kind of file (500)")
    parser.add_argument("--minutes", type=float, default=60.0, help="none starts later (60)")
    parser.add_argument("--seed", type=int, default=0, help="that every choice follows from")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to FILE")
    parser.add_argument(
        "--only", nargs="+", metavar="KIND[:N]", help=f"kinds or attempts: {', '.join(KINDS)}"
    )
    options = parser.parse_args()
    names = plan(KINDS, options.attempts, options.edits)
    if options.only:
        kinds = {word.partition(":")[0] for word in options.only}
        if unknown := kinds - KINDS.keys():
            parser.error(f"--only {min(unknown)}: kinds are {', '.join(KINDS)}")
        chosen = {word for word in options.only if ":" in word}
        every = {word for word in options.only if ":" not in word}
        names = [n for n in names if n.partition(":")[0] in every and n not in chosen]
        names += sorted(chosen)
    began = time.monotonic()
    adopt_orphans()
    folder = Path(tempfile.mkdtemp(prefix="chaos-states-", dir=in_memory()))
    try:
        until = began + 60 * options.minutes
        report = run(names, KINDS, States(folder), options.seed, until, print)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report.seconds = time.monotonic() - began
    print(report.table())
    if options.json:
        options.json.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
