"""`golden update`: accept traces as goldens."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from validation.cases import Case, CaseError, discover_cases
from validation.cli.common import add_selection, chosen_cases, lane_to_run
from validation.cli.progress import TerminalProgress
from validation.cli.proofs import prove_accepted
from validation.cli.suggest import unknown
from validation.config import lane_of
from validation.gate.plan import CheckPlan, recordings_of
from validation.goldens import GoldenStore
from validation.goldens.acceptance import (
    RefusedError,
    UndeclaredError,
    accept,
    load_runs,
    propose,
    refuse_broken,
    refuse_dirty,
    refuse_missing_lanes,
    refuse_undeclared,
    refuse_unknown,
)
from validation.goldens.declared import FORM, Expectation
from validation.run_folder import RunFolder
from validation.running.environment import gpu_count
from validation.running.execution import RunError
from validation.running.source import find_root
from validation.trace import Trace, save_trace


def add_commands(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "update",
        help="accept new goldens, with a reason",
        description="Runs cases (or takes runs made elsewhere) and accepts the traces as goldens. "
        "Shows what changes first. Refused: a tree that is dirty outside goldens/, a missing "
        "reason, movement that --expect does not declare. That refusal prints the command which "
        "accepts the run that was made, every movement declared.",
        epilog='examples:\n  golden update my_case --reason "first golden"\n'
        '  golden update my_case --reason "wider window" --expect "my_case:lm_loss:down:0.02" '
        '--expect "my_case:*:any"\n'
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
    parser.add_argument(
        "--reason", metavar="TEXT", help="why the goldens change; stays in the audit"
    )
    parser.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar=FORM,
        help="declare a movement; METRIC may hold *; MAXREL bounds the relative change",
    )
    parser.set_defaults(func=update)


def update(options: argparse.Namespace) -> int:
    """Proposes, shows, checks and accepts goldens.

    Args:
        options: of the command line.

    Returns:
        The exit status, 0.

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
    store = GoldenStore(root / "goldens")
    if options.runs:
        for name in options.case:
            if name not in cases:
                raise CaseError(unknown("case", name, cases))
        traces = load_runs(options.runs, root, cases, options.case)
        if options.lane:
            traces = [(lane, trace) for lane, trace in traces if lane == options.lane]
        lanes: dict[str, list[str]] = {}
        for lane, trace in traces:
            lanes.setdefault(trace.case, []).append(lane)
        refuse_unknown(store, lanes, expected, [trace for _, trace in traces])
        accepting = [*options.runs, *(["--lane", options.lane] if options.lane else [])]
    else:
        lane = lane_to_run(options)
        chosen = runnable(root, cases, lane, options.case)
        refuse_unknown(store, {case.name: [lane] for case in chosen}, expected)
        folder = RunFolder.create(root, lane)
        traces = record_here(root, lane, chosen, folder)
        accepting = [os.path.relpath(folder.path), "--lane", lane]
    if not traces:
        raise RefusedError("no trace to accept")
    refuse_broken(trace for _, trace in traces)
    proposals = [propose(store, lane, trace) for lane, trace in traces]
    for proposal in proposals:
        print("\n".join(proposal.describe()))
    sys.stdout.flush()
    try:
        refuse_undeclared(proposals, expected)
    except UndeclaredError as error:
        raise RefusedError(
            f"{error}; if that is intended, this accepts the run as it is:\n"
            + _command([*options.case, "--from", *accepting], options.reason, error.declarations)
        ) from error
    if options.runs and not options.lane:
        refuse_missing_lanes(store, proposals, cases)
    audit = accept(store, root, proposals, cases, options.reason.strip(), expected)
    print(f"accepted; audit: {audit.relative_to(root)}")
    for proposal in proposals:
        if not (proposal.before and proposal.before.tolerances.classes):
            name = proposal.trace.case
            print(f"{name} is compared exactly until `golden calibrate {name}` has measured noise")
    prove_accepted(root, proposals, cases, TerminalProgress())
    return 0


def _command(words: Sequence[object], reason: str, declarations: Sequence[Expectation]) -> str:
    """`golden update` with these words and movements declared, ready for a shell."""
    lines = [["golden", "update", *map(str, words), "--reason", reason.strip()]]
    lines += [["--expect", str(declaration)] for declaration in declarations]
    return " \\\n    ".join(map(shlex.join, lines))


def runnable(root: Path, cases: Mapping[str, Case], lane: str, names: Sequence[str]) -> list[Case]:
    """Chooses the cases that this machine can run; others are named on stderr.

    Args:
        root: the repository.
        cases: every declared case, by name.
        lane: where they would run.
        names: those that the user named; empty for every case of the lane.

    Returns:
        The cases to run.

    Raises:
        CaseError: an unknown case, or one that does not run on the lane.
        RefusedError: a case named by the user cannot run here.
    """
    able, progress = [], TerminalProgress()
    for case in chosen_cases(cases, names, lane):
        reason = case.needs.missing(root, gpu_count(), lane_of(root, lane))
        if reason is None:
            able.append(case)
        elif case.name in names:
            raise RefusedError(f"case {case.name} cannot run here: it {reason}")
        else:
            progress.message(f"{case.name}: skipped, {reason}")
    return able


def record_here(
    root: Path, lane: str, cases: Sequence[Case], folder: RunFolder
) -> list[tuple[str, Trace]]:
    """Runs cases and leaves their traces in a run folder.

    Args:
        root: the repository.
        lane: where the cases run.
        cases: what to run.
        folder: receives the traces and the log.

    Returns:
        (lane, trace) of each case, in order.

    Raises:
        RefusedError: a run failed.
    """
    plan = CheckPlan(root=root, lane=lane)
    recordings = recordings_of(plan, folder, TerminalProgress())
    traces = []
    with recordings.ahead(cases):
        for case in cases:
            try:
                trace = recordings.of(case).trace
            except RunError as error:
                raise RefusedError(f"case {case.name}: {error}") from error
            save_trace(trace, folder.trace(case.name))
            traces.append((lane, trace))
    return traces
