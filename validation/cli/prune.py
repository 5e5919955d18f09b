"""`golden prune`: room on the disk, from old run folders."""

from __future__ import annotations

import argparse
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from validation.config import declaration_of
from validation.config.retention import parse_retention
from validation.goldens.acceptance import RefusedError
from validation.pruning import choose, delete, delete_rests
from validation.running.source import find_root


def add_commands(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "prune",
        help="delete old run folders",
        description="Deletes run folders in runs/ that are neither among the newest nor young, as\n"
        "[tool.golden.runs] declares (keep = 20, days = 30). The latest run of each lane stays,\n"
        "and what is in use, what MLflow has not got yet, and benchmarks. No other command\n"
        "deletes runs.",
        epilog="examples:\n  golden prune --dry-run\n  golden prune\n"
        "  golden prune --keep 3 --days 0    (the disk is full)\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    parser.add_argument("--keep", type=int, metavar="N", help="keep the N newest")
    parser.add_argument("--days", type=int, metavar="N", help="keep what is not older than N days")
    parser.set_defaults(func=prune)


def prune(options: argparse.Namespace) -> int:
    """Deletes, and says what it freed.

    Args:
        options: of the command line.

    Returns:
        The exit status, 0.

    Raises:
        RefusedError: a number that is none.
    """
    root = find_root()
    given = {name: getattr(options, name) for name in ("keep", "days")}
    given = {name: number for name, number in given.items() if number is not None}
    try:
        parse_retention(given)
    except ValueError as error:
        raise RefusedError(f"--{error}") from error
    retention = replace(declaration_of(root).runs, **given)
    runs = root / "runs"
    gone, kept = choose(runs, retention, datetime.now(timezone.utc))
    for path, why in kept.items():
        print(f"{path.name}: stays: {why}")
    if options.dry_run:
        for run in gone:
            print(f"{run.path.name}: would be deleted, {_shown(run.size)}")
    else:
        delete_rests(runs)
        planned, gone = gone, []
        for run in delete(planned):
            print(f"{run.path.name}: deleted, {_shown(run.size)}", flush=True)
            gone.append(run)
    freed, said = sum(run.size for run in gone), "would free" if options.dry_run else "freed"
    print(
        f"{said} {_shown(freed)} of {len(gone)} run folder(s); the {retention.keep} newest stay, "
        f"and what is at most {retention.days} days old"
    )
    return 0


def _shown(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
