"""`golden health`, `rebase`, `bisect` and `setup`: keeping the gate in order."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from validation.cases import Case, discover_cases, discover_faults
from validation.cli.common import (
    add_case,
    add_lane,
    add_selection,
    chosen_cases,
    lane_to_run,
)
from validation.cli.progress import TerminalProgress
from validation.cli.proofs import Unproven, prove, prove_accepted
from validation.config import declaration_of
from validation.files import DamagedFileError, unfinished_writes
from validation.gate.bisect import bisect
from validation.gate.health import examine, known_gaps, notes
from validation.gate.plan import CheckPlan, describe_source
from validation.gate.rebase import (
    MERGE_REASON,
    Rebase,
    Rerun,
    conflicted,
    lane_to_move,
    rebase_environment,
    rebase_merge,
)
from validation.goldens import GoldenStore
from validation.goldens.acceptance import RefusedError, accept, refuse_dirty
from validation.goldens.layout import HEAD
from validation.goldens.merge import merge_heads, set_up
from validation.goldens.under_way import repair
from validation.power.proof import Planted, fit_faults, record
from validation.run_folder import RunFolder
from validation.running.execution import RunError, RunOptions
from validation.running.recordings import record_case
from validation.running.source import blob, commit_merged, find_root, git, unmerged_files
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

    parser = add(
        "health",
        health,
        "what is wrong with the goldens that no check reports",
        "Finds orphaned, stale, damaged and unreachable goldens, records that nothing checks,\n"
        "tolerances that do not follow from measured noise, edited audit files, cases that are\n"
        "never run, expired quarantine, what a killed update left. Exits 1 on a finding; gaps\n"
        "that the repository has declared, with reason, owner and expiry, are listed but do not\n"
        "count.",
        "  golden health\n  golden health --repair    (finish or undo what was killed)\n",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="first finish or undo what a killed update or calibration left; no golden changes",
    )

    parser = add(
        "rebase",
        rebase,
        "re-record after a merge conflict or an environment bump",
        "Without --env: records the merged code for goldens that both sides of a merge accepted,\n"
        "and shows both reasons: during the merge, whose conflict it resolves, or after it.\n"
        "With --env: moves goldens to a new environment, if the code is provably unchanged and\n"
        "its drift is what calibration knows; run it there.",
        "  golden rebase\n"
        "  golden rebase --env runs/OLD runs/NEW   (what golden check left in each environment)\n"
        "  golden rebase --env runs/OLD runs/NEW --lane gpu   (of runs of several lanes, one)\n",
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
        "  golden bisect v1.2 HEAD my_case\n",
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
        "text of goldens in git diff. Once for each clone. Files of goldens that have a digest\n"
        "in their names (of earlier versions, or of an acceptance that was stopped) get their\n"
        "fixed names.",
        "  golden setup\n",
    )

    parser = commands.add_parser("merge-driver", description="What git calls; see golden setup.")
    for name in ("base", "ours", "theirs"):
        parser.add_argument(name, type=Path)
    parser.set_defaults(func=merge_driver)


def health(options: argparse.Namespace) -> int:
    """Prints known gaps and findings; returns 1 when there are findings."""
    root = find_root()
    if options.repair:
        _repair(root)
    declared = declaration_of(root)
    found = examine(root, discover_cases(root), discover_faults(root), declared.lanes)
    findings, known = known_gaps(found, declared.gaps, datetime.now(timezone.utc).date())
    for gap in declared.gaps:
        listed = [finding for finding, covering in known if covering is gap]
        if listed:
            print(f"known until {gap.expires}, {gap.owner}: {gap.reason}")
        for finding in listed:
            print(f"  {finding.kind}: {finding.subject}: {finding.text}")
    for finding in findings:
        print(f"{finding.kind}: {finding.subject}: {finding.text}")
    for note in notes(root, declared.lanes):
        print(f"note: {note}")
    beside = f"{len(known)} known gap(s)" if known else ""
    if findings:
        print(f"{len(findings)} finding(s)" + (f", beside {beside}" if beside else ""))
        return 1
    print("healthy" + (f", but for {beside}" if beside else ""))
    return 0


def rebase(options: argparse.Namespace) -> int:
    """Records again what a merge or an environment bump calls for.

    Args:
        options: of the command line.

    Returns:
        The exit status, 0.

    Raises:
        RefusedError: what does not hold; no golden is touched then.
    """
    root = find_root()
    merging = commit_merged(root) is not None
    refuse_dirty(root, merging=merging and not options.env)
    if options.env:
        options.lane = lane_to_move(options.env[1], options.lane)
    lane = lane_to_run(options)
    store, cases = GoldenStore(root / "goldens"), discover_cases(root)
    rerun, progress = _rerunner(root, lane), TerminalProgress()
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
    # Before anything is written: what a rebase that was stopped has recorded and not staged.
    recorded = _recorded(root, store, lane) if merging and not options.env else []
    if not rebased and not recorded:
        print(f"nothing to rebase on lane {lane}")
        return 0
    if recorded:
        print(f"recorded already: {', '.join(case for case, _ in recorded)}")
        prove(root, (Unproven(lane, cases[c], p) for c, p in recorded), progress)
    if not rebased:
        _resolve(root, store, [store.path(lane, *golden) for golden in recorded])
        return 0
    for item in rebased:
        print("\n".join(item.shown))
    sys.stdout.flush()
    reason = "; ".join(dict.fromkeys(item.reason for item in rebased))
    audit = accept(store, root, [item.proposal for item in rebased], cases, reason, ())
    print(f"accepted; audit: {audit.relative_to(root)}")
    if not options.env:
        prove_accepted(root, [item.proposal for item in rebased], cases, progress)
        if merging:
            folders = [store.path(lane, *golden) for golden in recorded]
            _resolve(root, store, [*folders, *(_folder(store, item) for item in rebased)])
        return 0
    for item in rebased:
        golden = store.load(lane, item.proposal.trace.case, item.proposal.place)
        if item.proven or fit_faults(faults, lane, golden.case):
            print(record(store, faults, golden, Planted(item.proven, item.proven)))
    return 0


def _recorded(root: Path, store: GoldenStore, lane: str) -> list[tuple[str, str]]:
    """(case, place) of goldens that git holds in conflict, and that a rebase has recorded since.

    A whole golden that is one of the sides is not among them: git may leave it where the other side
    has deleted it.
    """
    unmerged, found = unmerged_files(root), []
    for case, place in ((c, p) for c in store.names(lane) for p in store.places(lane, c)):
        path = store.path(lane, case, place) / HEAD
        stages = unmerged.get(path.relative_to(root).as_posix())
        if not stages or path.read_bytes() in [blob(root, side) for side in stages.values()]:
            continue
        with contextlib.suppress(DamagedFileError):
            if store.load(lane, case, place).accepted["reason"].startswith(MERGE_REASON):
                found.append((case, place))
    return found


def _folder(store: GoldenStore, item: Rebase) -> Path:
    return store.path(item.proposal.lane, item.proposal.trace.case, item.proposal.place)


def _resolve(root: Path, store: GoldenStore, folders: Sequence[Path]) -> None:
    """Stages what a merge under way was waiting for, and says what it still waits for."""
    paths = [store.folder / "audit", *folders]
    git(root, "add", "--all", "--", *(str(path) for path in paths))
    left = sorted(unmerged_files(root))
    if left:
        print(f"staged; {len(left)} file(s) are still in conflict: {', '.join(left[:5])}")
    else:
        print("staged; no conflict is left: git commit (or git rebase --continue)")


def find_bad_commit(options: argparse.Namespace) -> int:
    """Prints the first bad commit; returns 0, or 1 when skipped commits leave several."""
    root = find_root()
    chosen_cases(discover_cases(root), [options.case], lane := lane_to_run(options))
    found = bisect(root, options.good, options.bad, options.case, lane, TerminalProgress())
    if len(found.commits) > 1:
        print(f"skipped commits leave {len(found.commits)} candidates:")
    for commit in found.commits:
        print(git(root, "show", "--stat", "--format=%H%n%an, %ad%n%n    %s%n", commit).rstrip())
    print(f"{len(found.log)} commits were tried")
    return 0 if len(found.commits) == 1 else 1


def setup(options: argparse.Namespace) -> int:
    """Configures git in this clone and gives files of goldens their fixed names; returns 0."""
    del options
    root = find_root()
    for line in set_up(root):
        print(line)
    store = GoldenStore(root / "goldens")
    with store.lock():
        _settle(root, store)
    return 0


def _repair(root: Path) -> None:
    """Finishes or undoes what a killed update left, and says what it did."""
    store = GoldenStore(root / "goldens")
    if not store.folder.is_dir():
        return
    unfinished = unfinished_writes(store.folder)
    with store.lock():  # which deletes them
        for path in unfinished:
            print(f"{path.relative_to(root)}: deleted, it was never finished")
        for line in repair(store):
            print(f"{store.folder.name}/{line}")
        _settle(root, store)


def _settle(root: Path, store: GoldenStore) -> None:
    """Gives files of goldens their fixed names, inside `store.lock()`."""
    for lane in store.lanes():
        for case, place in ((c, p) for c in store.names(lane) for p in store.places(lane, c)):
            try:
                done = store.settle(lane, case, place)
            except DamagedFileError as error:
                print(f"left as it is: {error}")
                continue
            if done:
                folder = store.path(lane, case, place).relative_to(root)
                print(f"{folder}: fixed names instead of {', '.join(done)} (commit it)")


def merge_driver(options: argparse.Namespace) -> int:
    """git's merge driver; returns 1, which leaves git's conflict, if both sides accepted."""
    return 0 if merge_heads(options.base, options.ours, options.theirs) else 1


def _rerunner(root: Path, lane: str) -> Rerun:
    """A function that runs a case here, its log in a run folder."""
    folder = RunFolder.create(root, lane)
    plan = CheckPlan(root=root, lane=lane)
    provenance, progress = describe_source(plan), TerminalProgress()

    def rerun(case: Case, fault: str | None, steps: int | None = None, /) -> Trace:
        progress.message(f"{case.name}: running" + (f" with {fault} planted" if fault else ""))
        settings = None if steps is None else {"stop_after": steps}
        options = RunOptions(lane=lane, fault=fault, settings=settings)
        return record_case(case, lane, root, folder.log, provenance, options)

    return rerun
