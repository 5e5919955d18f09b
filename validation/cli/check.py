"""`golden check` and `golden calibrate`."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from validation.calibration.calibrate import (
    LEAST_RUNS,
    Measured,
    detectable_effect,
    measure_case,
    unchanged_base,
)
from validation.calibration.derived import before_audit, refuse_underived, unfounded
from validation.calibration.noise import FACTOR
from validation.calibration.pooling import extends, pool
from validation.cases import Case, discover_cases, discover_faults
from validation.cli.common import (
    add_jobs,
    add_selection,
    chosen_cases,
    chosen_jobs,
    chosen_lane,
    lane_to_run,
    publish,
    refuse_no_file,
    refuse_no_folder,
    threads_each,
)
from validation.cli.progress import TerminalProgress
from validation.cli.proofs import Unproven, prove
from validation.config import CPU, lane_of
from validation.files import encode_json, write_atomically
from validation.gate.against import run_against
from validation.gate.base import BASE, check_with_base, judged_declaration, sources_of
from validation.gate.check import run_check
from validation.gate.plan import CheckPlan, describe_source
from validation.gate.verdict import CheckResult, Verdict, refuse_skips, worst
from validation.goldens import Golden, GoldenStore
from validation.goldens.acceptance import RefusedError, refuse_dirty
from validation.goldens.audit_log import AuditLog
from validation.goldens.calibrated import (
    calibration_on_file,
    write_adoption,
    write_calibration,
)
from validation.goldens.environments import identity, in_words
from validation.goldens.under_way import under_way
from validation.run_folder import RunFolder
from validation.running.environment import gpu_count, here
from validation.running.execution import RunError, RunOptions
from validation.running.reach import case_source_digest
from validation.running.recordings import record_case
from validation.running.revisions import commit_of
from validation.running.source import find_root
from validation.shortage import shortage
from validation.trace import Trace, load_trace, save_trace


def add_commands(commands: Any) -> None:
    """Adds the commands to the parser."""
    parser = commands.add_parser(
        "check",
        help="run, compare, verdict",
        description="Runs cases, compares their traces with the goldens, plants a known bug (the "
        "canary) and says PASS, FAIL, INVALID or UNFIT. What fails runs again, to the "
        "step that failed: where it does something else then, the verdict is HARDWARE or "
        "NONDETERMINISTIC. Everything is left in runs/.",
        epilog="examples:\n  golden check\n  golden check my_case --exact\n"
        "  golden check --lane cpu --json > verdict.json\n"
        "  golden check my_case --against origin/main    (was it the code, or the machine?)\n"
        "  OMP_NUM_THREADS=1 golden check    (your settings are obeyed)\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_selection(parser)
    parser.add_argument("--exact", action="store_true", help="require bit-identity")
    parser.add_argument("--json", action="store_true", help="print the verdict as one JSON object")
    parser.add_argument("--report", type=Path, metavar="DIR", help="also write report.html to DIR")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="also write JUnit XML to FILE")
    parser.add_argument(
        "--judge",
        metavar="REV",
        help="let the gate of a base revision judge: its comparator, cases and tolerances",
    )
    parser.add_argument(
        "--against",
        metavar="REV",
        help="run this tree and a revision, both here, and compare them bit for bit: no golden, "
        "no tolerance",
    )
    parser.add_argument(
        "--no-skips",
        action="store_true",
        help="demand that every case runs: a skipped one makes the check UNFIT",
    )
    # How --judge reaches the base's own gate.
    parser.add_argument("--judged-by", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    parser.set_defaults(func=check)

    parser = commands.add_parser(
        "calibrate",
        help="measure noise, write tolerances and the detectable effect",
        description="Reruns cases of an unchanged source tree under random rounding, each seed a\n"
        "machine that could exist, on a GPU with what the case declares as equivalent, and\n"
        "stores the tolerances that follow.",
        epilog="examples:\n  golden calibrate my_case --runs 12\n"
        "  golden calibrate my_case --from runs/A runs/B   (of several machines)\n"
        "  golden calibrate my_case --adopt --reason TEXT  (of an earlier version, as it is)\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_selection(parser)
    parser.add_argument("--runs", type=int, default=8, help="reruns of each case (default: 8)")
    add_jobs(parser)
    parser.add_argument(
        "--from",
        dest="folders",
        nargs="+",
        type=Path,
        default=[],
        metavar="RUN_DIR",
        help="measure on what checks and calibrations left, on other machines too; run nothing",
    )
    parser.add_argument(
        "--adopt",
        action="store_true",
        help="leave an audit file for tolerances that were measured before there were such files, "
        "if they follow from the noise stored with them; run nothing",
    )
    parser.add_argument(
        "--reason", default="", help="why, for goldens/audit and whoever accepts wider tolerances"
    )
    parser.set_defaults(func=calibrate)


def check(options: argparse.Namespace) -> int:
    """Runs the check and every sink; returns the verdict's exit code."""
    root = find_root()
    refuse_no_folder("--report", options.report)
    refuse_no_file("--junit", options.junit)
    if options.against is not None:
        refuse_mixture(options)
        commit_of(root, options.against, "--against")
    if options.judge:
        return check_with_base(root, options.judge, _words(options))
    options.lane = lane = chosen_lane(options)
    declared = judged_declaration(root, options.judged_by)
    sources = sources_of(root, options.judged_by)
    plan = CheckPlan(
        root=root,
        lane=lane,
        cases=chosen_cases(discover_cases(sources, declared), options.case, lane),
        faults=list(discover_faults(sources, declared).values()),
        exact=options.exact,
        judge=options.judged_by,
        base=os.environ.get(BASE) if options.judged_by else None,
    )
    progress = TerminalProgress()
    folder = RunFolder.create(root, lane)
    with progress:
        if options.against is not None:
            every = not options.case
            result = run_against(plan, options.against, folder, progress, every_case=every)
        else:
            result = run_check(plan, folder, progress)
    if options.no_skips:
        result = refuse_skips(result)
    try:
        write_sinks(result, folder, options.report, options.junit)
    except Exception as error:  # a report that cannot be drawn never changes a verdict
        lacking = shortage(error)
        if lacking is not None:  # but what cannot be kept was not checked for anybody
            result = _without_room(result, lacking)
        progress.message(f"warning: the reports are incomplete: {type(error).__name__}: {error}")
    if options.json:
        _print_json(result)
    else:
        from validation.report.terminal import print_check

        print_check(result)
        print(f"run: {folder.path.relative_to(root)}")
    publish(folder.path, progress)
    return result.exit_code


def print_unfit(options: argparse.Namespace, lacking: str) -> None:
    """Prints the object of a check that the machine could not finish, if one is asked for.

    Args:
        options: of the command.
        lacking: what the machine lacks.
    """
    if options.json:
        lane = options.lane or CPU
        _print_json(_without_room(CheckResult(Verdict.PASS, lane, 0.0, {}, None, ()), lacking))


def _without_room(result: CheckResult, lacking: str) -> CheckResult:
    """The check, at best UNFIT."""
    lines = (lacking, result.message)
    verdict = worst([result.verdict, Verdict.UNFIT])
    return replace(result, verdict=verdict, message="\n".join(filter(None, lines)))


def _print_json(result: CheckResult) -> None:
    json.dump(result.to_json(), sys.stdout, allow_nan=False)
    print()


def refuse_mixture(options: argparse.Namespace) -> None:
    """Refuses options that `--against` leaves nothing to do, having no golden and no tolerance.

    Args:
        options: of the command line.

    Raises:
        RefusedError: such an option is there.
    """
    others = {"--judge": options.judge, "--exact": options.exact, "--judged-by": options.judged_by}
    given = [name for name, value in others.items() if value]
    if given:
        raise RefusedError(
            f"--against compares two runs bit for bit, without goldens: {given[0]} says nothing "
            "there; leave out one of the two"
        )


def _words(options: argparse.Namespace) -> list[str]:
    """The command line again, without --judge."""
    words = list(options.case)
    words += ["--lane", options.lane] if options.lane else []
    words += ["--exact"] if options.exact else []
    words += ["--no-skips"] if options.no_skips else []
    words += ["--json"] if options.json else []
    words += ["--report", str(options.report)] if options.report else []
    return words + (["--junit", str(options.junit)] if options.junit else [])


def write_sinks(
    result: CheckResult, folder: RunFolder, report: Path | None, junit: Path | None
) -> None:
    """Writes the verdict and the reports into the run folder, and where the user wants copies."""
    from validation.report import write_reports
    from validation.report.html import write_report
    from validation.report.junit import write_junit

    write_atomically(folder.verdict, encode_json(result.to_json()))
    write_reports(result, folder.path)
    if report:
        write_report(result, folder.path, report / "report.html")
    if junit:
        write_junit(result, junit)


def calibrate(options: argparse.Namespace) -> int:
    """Measures noise and stores tolerances with the goldens."""
    root = find_root()
    nothing_runs = options.folders or options.adopt
    lane = chosen_lane(options) if nothing_runs else lane_to_run(options)
    if options.runs < LEAST_RUNS:
        raise RefusedError(f"--runs: at least {LEAST_RUNS}, to hold each rerun against others")
    refuse_dirty(root)
    cases = discover_cases(root)
    store = GoldenStore(root / "goldens")
    progress = TerminalProgress()
    if options.adopt:
        chosen = chosen_cases(cases, options.case, lane)
        return _adopt(store, lane, [case.name for case in chosen], options.reason)
    if options.folders:
        for case in chosen_cases(cases, options.case, lane):
            golden = _calibrate_on(options.folders, store, lane, case, progress, options.reason)
            prove(root, [Unproven(lane, case, golden.place, golden.canaries.proofs)], progress)
        return 0
    jobs = chosen_jobs(options, on_gpus=lane_of(root, lane).on_gpus)
    folder = RunFolder.create(root, lane)
    plan = CheckPlan(root=root, lane=lane)
    for case in chosen_cases(cases, options.case, lane):
        reason = case.needs.missing(root, gpu_count(), lane_of(root, lane))
        if reason is not None:
            progress.message(f"{case.name}: skipped, it {reason}")
            continue
        environment = here(lane_of(root, lane), case.processes)
        golden = store.nearest(lane, case.name, environment)
        if identity(golden.environment) != identity(environment):
            raise RefusedError(
                f"case {case.name}: {in_words(environment)} has no golden; golden update first"
            )
        provenance = describe_source(plan)

        def rerun(variant: Any, case: Any = case, provenance: Any = provenance) -> Trace:
            progress.message(f"{case.name}: {variant.name}")
            run = RunOptions(
                lane=lane,
                settings=variant.settings,
                rounding_seed=variant.rounding_seed,
                environment=threads_each(jobs),
            )
            trace = record_case(case, lane, root, folder.log, provenance, run)
            left = folder.path / "reruns" / case.name / re.sub(r"\W+", "-", variant.name)
            named = {**trace.provenance, "variant": variant.name}
            save_trace(replace(trace, provenance=named), left)
            return trace

        try:
            with progress:
                base = unchanged_base(golden, case_source_digest(case, root), rerun)
                measured = measure_case(
                    case, not lane_of(root, lane).on_gpus, options.runs, base, rerun, progress, jobs
                )
        except (RunError, ValueError) as error:
            raise RefusedError(f"case {case.name}: {error}") from error
        save_trace(base, folder.trace(case.name))
        _store(store, case, golden, measured, options.reason)
        prove(root, [Unproven(lane, case, golden.place, golden.canaries.proofs)], progress)
    return 0


def _calibrate_on(
    folders: Sequence[Path],
    store: GoldenStore,
    lane: str,
    case: Case,
    progress: TerminalProgress,
    reason: str,
) -> Golden:
    """Calibrates a case on what run folders hold of it; returns its golden before."""
    golden = golden_of_runs(store, lane, case.name, folders)
    if extends(golden):
        refuse_underived(golden, AuditLog(store.folder))
    try:
        measured = pool(golden, folders, progress)
    except ValueError as error:
        raise RefusedError(f"case {case.name}: {error}") from error
    _store(store, case, golden, measured, reason)
    return golden


def _adopt(store: GoldenStore, lane: str, cases: Sequence[str], reason: str) -> int:
    """Leaves an audit file for each calibration from before there were any; returns 0.

    Raises:
        RefusedError: no reason, no such golden, or tolerances that do not follow from their noise.
    """
    if not reason.strip():
        raise RefusedError("--adopt: say with --reason why unaudited tolerances may stay")
    adopted = []
    with store.lock():
        for case, place in ((c, p) for c in cases for p in store.places(lane, c)):
            golden = store.load(lane, case, place)
            log = AuditLog(store.folder)
            if not before_audit(golden) or calibration_on_file(log, golden) is not None:
                continue
            wrong = unfounded(golden)
            if wrong:
                raise RefusedError(f"{lane}/{case}: {wrong[0].text}: golden calibrate {case}")
            audit = write_adoption(store, golden, reason)
            adopted.append(audit)
            print(f"{'/'.join(filter(None, (lane, case, place)))}: {audit.name}")
    if not adopted:
        raise RefusedError(
            f"--adopt: on lane {lane} no golden of {', '.join(cases)} was calibrated before there "
            "were audit files, without one"
        )
    return 0


def golden_of_runs(store: GoldenStore, lane: str, case: str, folders: Sequence[Path]) -> Golden:
    """Loads the golden of the environment that run folders were made in.

    Args:
        store: the goldens.
        lane: lane of the golden.
        case: name of the case.
        folders: run folders; the first that has a run of the case decides.

    Returns:
        The golden.

    Raises:
        RefusedError: there is no run, or no golden of its environment.
    """
    for folder in folders:
        for head in (*folder.glob(f"traces/{case}"), *folder.glob(f"reruns/{case}/*")):
            environment = load_trace(head).provenance["environment"]
            place = store.place_of(lane, case, environment)
            if place is None:
                where = in_words(environment)
                raise RefusedError(
                    f"case {case}: {where} has no golden; golden update --from first"
                )
            return store.load(lane, case, place)
    raise RefusedError(f"case {case}: no run of it in {', '.join(map(str, folders))}")


def _store(store: GoldenStore, case: Case, golden: Golden, measured: Measured, reason: str) -> None:
    """Stores tolerances with a golden and who measured them, and says what they are worth."""
    calibration = {
        **measured.record(golden),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    calibrated = replace(
        golden,
        tolerances=measured.tolerances,
        calibration=calibration,
        detectable_effect=detectable_effect(case, golden.trace, measured),
    )
    with store.lock(), under_way(store):
        store.refuse_stale(golden.lane, golden.case, golden.place, golden)
        write_calibration(store, golden, calibrated, reason)
        store.save(calibrated)
    print(
        f"{golden.lane}/{golden.case}: {len(measured.tolerances.classes)} classes from "
        f"{len(measured.lines)} runs ({measured.source}), {FACTOR:g} x their noise, at least "
        f"{measured.floor:.2g}; held out, a run needed {max(measured.held_out, default=0.0):.2g} "
        "of its tolerance at most"
    )
