"""`golden mutate`: automatic mutants of the gated code, and which of them the cases kill."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from validation.cases import discover_cases, discover_gated
from validation.cli.common import (
    add_jobs,
    add_selection,
    chosen_cases,
    chosen_jobs,
    killing_goldens,
    lane_to_run,
    threads_each,
)
from validation.cli.progress import TerminalProgress
from validation.config import declaration_of, lane_of
from validation.coverage.document import Measured
from validation.coverage.fall import accepted_file
from validation.coverage.files import gated_files
from validation.coverage.present import best_known
from validation.files import encode_json, write_atomically
from validation.goldens.acceptance import RefusedError
from validation.mutation.campaign import Campaign, Kept, run_campaign
from validation.mutation.mutants import drawn
from validation.mutation.opinion import UnitTests
from validation.mutation.score import Score
from validation.mutation.trial import Judges
from validation.power.ledger import state_of
from validation.run_folder import RunFolder
from validation.running.source import commit, find_root

RESULT = "mutants.json"


def add_commands(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "mutate",
        help="plant automatic mutants and print which the cases kill",
        description="Changes the gated code a little (an operator, a constant, a condition, a\n"
        "dropped statement, swapped arguments, a bound), one change at a time, and runs the\n"
        "cases that run the line, the cheapest first, until one does not pass; with CASE only\n"
        "those. The working tree is never touched. Needs golden coverage, which says what runs\n"
        "what. Survivors count against the score whatever they are.",
        epilog="examples:\n  golden mutate --sample 300 --with-tests --minutes 480\n"
        "  golden mutate --file 'my_package/optimizer/*' --sample 30\n"
        "  golden mutate --resume --json > mutants.json   (after an interruption)\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=100,
        metavar="N",
        help="mutants on lines that some case runs, to try (default: 100); those that are drawn "
        "on other lines are counted and not run",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="draws others (default 1)")
    parser.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only of files whose path matches; repeatable",
    )
    parser.add_argument("--minutes", type=float, metavar="M", help="begin no mutant after so many")
    parser.add_argument(
        "--with-tests",
        action="store_true",
        help="ask the unit tests nearest to the file about each survivor",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="try only mutants that the last calls on this code have not tried",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_selection(parser)
    add_jobs(parser)
    parser.set_defaults(func=mutate)


def mutate(options: argparse.Namespace) -> int:
    """Tries the mutants, and prints and stores their score.

    Args:
        options: of the command line.

    Returns:
        The exit status, 0: a score is a measurement, not a verdict.

    Raises:
        RefusedError: nothing was measured, there is no golden, or a case does not pass unmutated.
        CaseError: the repository says wrongly what is gated.
    """
    root, lane = find_root(), lane_to_run(options)
    _refuse_wrong(options)
    declared = discover_cases(root)
    cases = {name: case for name, case in declared.items() if lane in case.lanes}
    judges = chosen_cases(declared, options.case, lane)
    measured = _measured(root, lane, options.case)
    files = gated_files(root, declaration_of(root), discover_gated(root), list(cases.values()))
    progress = TerminalProgress()
    able = [case for case in judges if case.name in measured.cases]
    goldens = killing_goldens(root, lane, able, progress)
    if not goldens:
        raise RefusedError(f"lane {lane} has no golden to judge by: golden update --reason TEXT")
    jobs = chosen_jobs(options, on_gpus=lane_of(root, lane).on_gpus)
    folder = RunFolder.create(root, lane)
    campaign = Campaign(
        judges=Judges(
            root=root,
            lane=lane,
            cases=cases,
            goldens=goldens,
            seconds={name: case.seconds for name, case in measured.cases.items()},
            environment=threads_each(jobs),
            log=folder.log,
        ),
        tests=UnitTests(root, folder.log) if options.with_tests else None,
        covered=options.sample,
        minutes=options.minutes,
        jobs=jobs,
        kept=Kept(
            root / "runs" / f"mutants-{lane}.jsonl",
            state_of(root, lane, goldens),
            resume=options.resume,
        ),
        tell=progress.message,
    )
    mutants = drawn(root, files.names, measured, options.seed, options.file, goldens)
    with progress:
        score = run_campaign(campaign, mutants)
    document = {**score.to_json(), "lane": lane, "seed": options.seed, "commit": commit(root)}
    write_atomically(folder.path / RESULT, encode_json(document))
    if options.json:
        json.dump(document, sys.stdout, allow_nan=False)
        print()
    else:
        print(render(score))
        print(f"run: {folder.path.relative_to(root)}")
    return 0


def _refuse_wrong(options: argparse.Namespace) -> None:
    if options.sample < 1:
        raise RefusedError(f"--sample {options.sample}: at least 1")
    if options.minutes is not None and not options.minutes > 0:
        raise RefusedError(f"--minutes {options.minutes:g}: more than 0")
    if options.with_tests and importlib.util.find_spec("pytest") is None:
        raise RefusedError("--with-tests: pytest is not installed here")


def _measured(root: Path, lane: str, names: Sequence[str]) -> Measured:
    known = best_known(root, lane, accepted_file(root, lane), names)
    if known is None:
        command = " ".join(["golden coverage", *names, "--lane", lane])
        raise RefusedError(f"nobody has measured what these cases run: {command}")
    return known


def render(score: Score) -> str:
    """The score as text: survivors with their diffs, then the figures by module."""
    lines = []
    for one in score.survivors:
        told = {True: ", killed by the tests", False: ", the tests pass", None: ""}
        note = told[one.outcome.tests] + (f" ({one.outcome.note})" if one.outcome.note else "")
        edit = one.mutant.edit
        lines.append(f"survived: {one.mutant.name}:{edit.line} {edit.operator}{note}")
        changed = [t for t in one.diff.splitlines()[3:] if t.startswith(("+", "-"))]
        lines += [f"    {text}" for text in changed]
    document = score.to_json()
    width = max((len(name) for name in document["by_module"]), default=0)
    for name, counts in document["by_module"].items():
        lines.append(f"{name.ljust(width)}  {_in_words(counts)}")
    lines.append(f"all: {_in_words(document)}")
    return "\n".join(lines)


def _in_words(counts: Any) -> str:
    covered, tests = counts["covered"], counts["killed_with_tests"]
    share = f" ({counts['killed'] / covered:.1%})" if covered else ""
    more = "" if tests is None else f", {tests} with the unit tests"
    return (
        f"{counts['killed']} of {covered} killed{share}{more}; "
        f"{counts['mutants'] - covered} on lines that no case runs"
    )
