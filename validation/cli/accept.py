"""`golden update`: accept traces as goldens."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from validation.cases import Case, CaseError, discover_cases
from validation.check import CheckPlan, describe_source, new_run_folder, recordings_of
from validation.cli.common import Progress, add_selection, chosen_cases, lane_to_run
from validation.cli.proofs import prove_accepted
from validation.environment import gpu_count
from validation.execution import RunError
from validation.goldens import GoldenStore
from validation.goldens.acceptance import (
    RefusedError,
    accept,
    load_runs,
    propose,
    refuse_dirty,
    refuse_missing_lanes,
    refuse_undeclared,
)
from validation.goldens.changes import Expectation
from validation.source import find_root, tree_digest
from validation.suggest import unknown
from validation.trace import Trace, save_trace


def add_commands(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "update",
        help="accept new goldens, with a reason",
        description="Run cases (or take runs made elsewhere) and accept their traces as goldens. "
        "Shows what changes first. Refused: a tree that is dirty outside goldens/, a missing "
        "reason, movement that --expect does not declare.",
        epilog='examples:\n  golden update tiny_moe --reason "first golden"\n'
        '  golden update tiny_moe --reason "wider window" --expect "tiny_moe:lm_loss:down:0.02" '
        '--expect "tiny_moe:*:any"\n'
        '  golden update --from runs/A runs/B --reason "new kernel" (several lanes at once)\n',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_selection(parser)
    parser.add_argument(
        "--from",
        dest="runs",
        nargs="+",
        type=Path,
        default=[],
        metavar="RUN_DIR",
        help="accept these runs instead of running here; digests and source tree are verified",
    )
    parser.add_argument("--reason", metavar="TEXT", help="why the goldens change; kept for ever")
    parser.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="CASE:METRIC:up|down|any[:MAXREL]",
        help="declare a movement; METRIC may hold *; MAXREL bounds the relative change",
    )
    parser.set_defaults(func=update)


def update(options: argparse.Namespace) -> int:
    """Proposes, shows, checks and accepts; returns 0.

    Raises:
        RefusedError: why nothing was accepted.
    """
    if not (options.reason or "").strip():
        raise RefusedError('a reason is required: --reason "why the goldens change"')
    try:
        expected = [Expectation.parse(text) for text in options.expect]
    except ValueError as error:
        raise RefusedError(f"--expect {error}") from error
    root = find_root()
    refuse_dirty(root)
    cases = discover_cases(root)
    if options.runs:
        for name in options.case:
            if name not in cases:
                raise CaseError(unknown("case", name, cases))
        traces = load_runs(options.runs, root, cases, options.case)
        if options.lane:
            traces = [(lane, trace) for lane, trace in traces if lane == options.lane]
    else:
        traces = record_here(root, cases, options)
    if not traces:
        raise RefusedError("no trace to accept")
    store = GoldenStore(root / "goldens")
    proposals = [propose(store, lane, trace) for lane, trace in traces]
    for proposal in proposals:
        print("\n".join(proposal.describe()))
    sys.stdout.flush()
    refuse_undeclared(proposals, expected)
    if options.runs and not options.lane:
        refuse_missing_lanes(store, proposals, cases)
    audit = accept(store, root, proposals, cases, options.reason.strip(), expected)
    print(f"accepted; audit: {audit.relative_to(root)}")
    for proposal in proposals:
        if not (proposal.before and proposal.before.tolerances.classes):
            name = proposal.trace.case
            print(f"{name} is compared exactly until `golden calibrate {name}` has measured noise")
    prove_accepted(root, proposals, cases, Progress())
    return 0


def record_here(
    root: Path, cases: Mapping[str, Case], options: argparse.Namespace
) -> list[tuple[str, Trace]]:
    """Runs the chosen cases and returns their traces.

    Raises:
        RefusedError: a run failed, or a case named by the user cannot run here.
    """
    lane = lane_to_run(options)
    folder = new_run_folder(root, lane, tree_digest(root))
    progress = Progress()
    plan = CheckPlan(root=root, lane=lane, cases=[], faults=[], command=["golden", *sys.argv[1:]])
    recordings = recordings_of(plan, folder, describe_source(plan), progress)
    able, traces = [], []
    for case in chosen_cases(cases, options.case, lane):
        reason = case.needs.missing(root, gpu_count(), lane)
        if reason is None:
            able.append(case)
        elif case.name in options.case:
            raise RefusedError(f"case {case.name} cannot run here: it {reason}")
        else:
            progress(f"{case.name}: skipped, {reason}")
    with recordings.ahead(able):
        for case in able:
            try:
                trace = recordings.of(case).trace
            except RunError as error:
                raise RefusedError(f"case {case.name}: {error}") from error
            save_trace(trace, folder.trace(case.name))
            traces.append((lane, trace))
    return traces
