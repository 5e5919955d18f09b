"""`golden explain`: a run's first divergence, or the first operation that two runs do otherwise."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from validation.cases import discover_cases
from validation.cli.common import add_case, add_lane, chosen_cases, lane_to_run
from validation.cli.progress import TerminalProgress
from validation.config import lane_of
from validation.diagnosis.first_operation import Search, described, first_operation
from validation.goldens.acceptance import RefusedError
from validation.run_folder import RunFolder, finished_runs
from validation.running.environment import gpu_count
from validation.running.execution import RunError
from validation.running.revisions import commit_of
from validation.running.source import find_root


def add_commands(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "explain",
        help="first divergence and what led to it",
        description="Prints, in one screen, where a run first left its golden, what came before "
        "and how far\nit spread. With --ops, runs a case twice and names the first operation whose "
        "bits differ,\nand its line of source: this tree against a revision, or in another setting "
        "of the environment.",
        epilog="examples:\n"
        "  golden explain                     the latest run\n"
        "  golden explain runs/20260101T000000-cpu-0123456789ab\n"
        "  golden explain --ops my_case --against HEAD~1 --steps 1\n"
        "  golden explain --ops my_case --set ATEN_CPU_CAPABILITY=default\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="default: the latest")
    add_case(parser, "--ops", help="run CASE twice, operation by operation")
    parser.add_argument("--against", metavar="REV", help="the other run's code; with --ops")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="environment variable of the other run; repeatable, with --ops",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="train so many steps; with --ops")
    parser.add_argument("--json", action="store_true", help="print one JSON object; with --ops")
    add_lane(parser)
    parser.set_defaults(func=explain)


def explain(options: argparse.Namespace) -> int:
    """Prints the explanation of a run (returns 0) or of an operation (1 if any differs)."""
    root = find_root()
    if options.ops is not None:
        return explain_operation(root, options)
    only = {"--against": options.against, "--set": options.set, "--steps": options.steps}
    given = [name for name, value in (*only.items(), ("--json", options.json)) if value]
    if given:
        raise RefusedError(f"{given[0]} says nothing without --ops CASE")
    from validation.report.explain import render_explanation

    print(render_explanation(options.run or _latest_run(root)), end="")
    return 0


def explain_operation(root: Path, options: argparse.Namespace) -> int:
    """Prints the first operation that differs.

    Args:
        root: the repository.
        options: of the command line.

    Returns:
        The exit status: 1 if there is one, else 0.

    Raises:
        RefusedError: nothing says in what the two runs differ, or a run left no trace.
    """
    if options.run is not None:
        raise RefusedError(f"{options.run}: --ops makes its own runs; leave out the run folder")
    if options.against is None and not options.set:
        raise RefusedError("--ops compares two runs: say --against REV, --set NAME=VALUE or both")
    if options.steps is not None and options.steps < 1:
        raise RefusedError(f"--steps {options.steps}: at least 1")
    variables = dict(_variable(text) for text in options.set)
    if options.against is not None:
        commit_of(root, options.against, "--against")
    lane = lane_to_run(options)
    (case,) = chosen_cases(discover_cases(root), [options.ops], lane)
    lacks = case.needs.missing(root, gpu_count(), lane_of(root, lane))
    if lacks is not None:
        raise RefusedError(f"case {case.name}: it {lacks}")
    log = RunFolder.create(root, lane).log
    search = Search(root, lane, case, log, options.against, variables, options.steps)
    progress = TerminalProgress()
    try:
        with progress:
            found, compared = first_operation(search, progress)
    except RunError as error:
        raise RefusedError(f"case {case.name}: {error}") from error
    if options.json:
        first = None if found is None else found.to_json()
        json.dump({"case": case.name, "same": compared, "first": first}, sys.stdout)
        print()
    elif found is None:
        print(f"{case.name}: all of {compared:,} operations are the same bit for bit")
    else:
        print(described(found, search))
    return 0 if found is None else 1


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise RefusedError(f"--set {text}: write NAME=VALUE")
    return name, value


def _latest_run(root: Path) -> Path:
    runs = finished_runs(root)
    if not runs:
        raise RefusedError(f"{root / 'runs'}: no run yet; golden check makes one")
    return runs[-1]
