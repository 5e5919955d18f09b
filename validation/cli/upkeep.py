"""`golden health`, `rebase`, `bisect` and `setup`: keeping the gate in order."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from validation.bisect import bisect
from validation.cases import Case, discover_cases, discover_faults
from validation.check import CheckPlan, describe_source, new_run_folder, record_case
from validation.cli.common import (
    Progress,
    add_case,
    add_lane,
    add_selection,
    chosen_cases,
    lane_to_run,
)
from validation.cli.proofs import prove_accepted
from validation.config import declaration_of
from validation.execution import RunError, RunOptions
from validation.goldens import GoldenStore
from validation.goldens.acceptance import RefusedError, accept, refuse_dirty
from validation.goldens.health import examine
from validation.goldens.merge import merge_heads, set_up
from validation.goldens.rebase import (
    Rebase,
    Rerun,
    conflicted,
    lane_to_move,
    rebase_environment,
    rebase_merge,
)
from validation.power.proof import Planted, fit_faults, record
from validation.source import find_root, git, tree_digest
from validation.trace import Trace


def add_commands(commands: Any) -> None:
    """Adds the commands to the parser."""

    def add(name: str, run: Callable[..., int], help_text: str, text: str, example: str) -> Any:
        parser = commands.add_parser(
            name,
            help=help_text,
            description=text,
            epilog=f"examples:\n{example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(func=run)
        return parser

    add(
        "health",
        health,
        "goldens that no check would tell about",
        "Finds orphaned, stale, damaged and unreachable goldens, records that nothing checks,\n"
        "cases that are never run, expired quarantine. Exits 1 on a finding.",
        "  golden health\n",
    )

    parser = add(
        "rebase",
        rebase,
        "re-record after a merge conflict or an environment bump",
        "Without --env: records the merged code for goldens that both sides of a merge accepted,\n"
        "and shows both reasons. With --env: moves goldens to a new environment, if the code is\n"
        "provably unchanged and its drift is what calibration knows; run it there.",
        "  golden rebase\n"
        "  golden rebase --env runs/OLD runs/NEW   (what golden check left in each environment)\n"
        "  golden rebase --env runs/OLD runs/NEW --lane h200   (of runs of several lanes, one)\n",
    )
    add_selection(parser)
    parser.add_argument("--env", nargs=2, type=Path, metavar=("OLD", "NEW"), help="run folders")

    parser = add(
        "bisect",
        find_bad_commit,
        "the commit that broke a case",
        "Searches the commits after GOOD up to BAD with today's gate, in a worktree of its own.\n"
        "A commit is good when it matches any golden accepted on the way; one that does not build\n"
        "is skipped.",
        "  golden bisect v1.2 HEAD tiny_moe\n",
    )
    parser.add_argument("good", metavar="GOOD", help="a revision that passes")
    parser.add_argument("bad", metavar="BAD", help="a later revision that fails")
    add_case(parser)
    add_lane(parser)

    add(
        "setup",
        setup,
        "teach this clone's git to merge and diff goldens",
        "Configures the merge driver, which marks a golden that both sides accepted, and the\n"
        "text of goldens in git diff. Once for each clone.",
        "  golden setup\n",
    )

    parser = commands.add_parser("merge-driver", description="What git calls; see golden setup.")
    for name in ("base", "ours", "theirs"):
        parser.add_argument(name, type=Path)
    parser.set_defaults(func=merge_driver)


def health(options: argparse.Namespace) -> int:
    """Prints findings; returns 1 when there are any."""
    del options
    root = find_root()
    lanes = declaration_of(root).lanes
    findings = examine(root, discover_cases(root), discover_faults(root), lanes)
    for finding in findings:
        print(f"{finding.kind}: {finding.subject}: {finding.text}")
    print(f"{len(findings)} finding(s)" if findings else "healthy")
    return 1 if findings else 0


def rebase(options: argparse.Namespace) -> int:
    """Records again what a merge or an environment bump calls for; returns 0.

    Raises:
        RefusedError: what does not hold; no golden is touched then.
    """
    root = find_root()
    if options.env:
        options.lane = lane_to_move(options.env[1], options.lane)
    lane = lane_to_run(options)
    store, cases = GoldenStore(root / "goldens"), discover_cases(root)
    refuse_dirty(root)
    rerun, progress = _rerunner(root, lane), Progress()
    faults = list(discover_faults(root).values())
    rebased: list[Rebase] = []
    if options.env:
        runs = (options.env[0], options.env[1])
        try:
            rebased = rebase_environment(
                store, root, cases, faults, runs, options.case, rerun, lane
            )
        except RunError as error:
            raise RefusedError(f"lane {lane}: {error}") from error
    else:
        waiting = conflicted(store, lane)
        for case in chosen_cases(cases, options.case or list(waiting), lane) if waiting else ():
            if case.name not in waiting:
                raise RefusedError(f"{lane}/{case.name} was not accepted on both sides of a merge")
            try:
                rebased.append(rebase_merge(store, lane, case, waiting[case.name], rerun))
            except RunError as error:
                raise RefusedError(f"{lane}/{case.name}: {error}") from error
    if not rebased:
        print(f"nothing to rebase on lane {lane}")
        return 0
    for item in rebased:
        print("\n".join(item.shown))
    sys.stdout.flush()
    reason = "; ".join(dict.fromkeys(item.reason for item in rebased))
    audit = accept(store, root, [item.proposal for item in rebased], cases, reason, ())
    print(f"accepted; audit: {audit.relative_to(root)}")
    if not options.env:
        prove_accepted(root, [item.proposal for item in rebased], cases, progress)
        return 0
    for item in rebased:
        golden = store.load(lane, item.proposal.trace.case, item.proposal.place)
        if item.proven or fit_faults(faults, lane, golden.case):
            print(record(store, faults, golden, Planted(item.proven, item.proven)))
    return 0


def find_bad_commit(options: argparse.Namespace) -> int:
    """Prints the first bad commit; returns 0, or 1 when skipped commits leave several."""
    root = find_root()
    chosen_cases(discover_cases(root), [options.case], lane := lane_to_run(options))
    found = bisect(root, options.good, options.bad, options.case, lane, Progress())
    if len(found.commits) > 1:
        print(f"skipped commits leave {len(found.commits)} candidates:")
    for commit in found.commits:
        print(git(root, "show", "--stat", "--format=%H%n%an, %ad%n%n    %s%n", commit).rstrip())
    print(f"{len(found.log)} commits were tried")
    return 0 if len(found.commits) == 1 else 1


def setup(options: argparse.Namespace) -> int:
    """Configures git in this clone; returns 0."""
    del options
    for line in set_up(find_root()):
        print(line)
    return 0


def merge_driver(options: argparse.Namespace) -> int:
    """git's merge driver; returns 0, so that the merge goes on and the gate says INVALID."""
    merge_heads(options.base, options.ours, options.theirs)
    return 0


def _rerunner(root: Path, lane: str) -> Rerun:
    """A function that runs a case here, its log in a run folder."""
    folder = new_run_folder(root, lane, tree_digest(root))
    plan = CheckPlan(root=root, lane=lane, cases=[], faults=[], command=["golden", *sys.argv[1:]])
    provenance, progress = describe_source(plan), Progress()

    def rerun(case: Case, fault: str | None, steps: int | None = None, /) -> Trace:
        progress(f"{case.name}: running" + (f" with {fault} planted" if fault else ""))
        settings = None if steps is None else {"stop_after": steps}
        options = RunOptions(lane=lane, fault=fault, settings=settings)
        return record_case(case, lane, root, folder.log, provenance, options)

    return rerun
