"""`golden coverage`: what of the gated code, and of its fields, no case runs."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from validation.cases import discover_cases, discover_gated
from validation.cli.common import (
    add_jobs,
    add_selection,
    chosen_cases,
    chosen_jobs,
    lane_to_run,
    threads_each,
)
from validation.cli.progress import TerminalProgress
from validation.config import declaration_of, lane_of
from validation.coverage.accepted import accept_measured, refuse_in_part
from validation.coverage.document import FILE, Measured, in_words
from validation.coverage.files import gated_files
from validation.coverage.measure import Plan, measure, refuse_without_coverage
from validation.files import encode_json, write_atomically
from validation.goldens.acceptance import RefusedError, refuse_dirty
from validation.run_folder import RunFolder
from validation.running.environment import gpu_count
from validation.running.source import commit, find_root

_SHOWN = 12


def add_commands(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "coverage",
        help="what of the gated code no case runs",
        description="Runs the cases of a lane, measured by coverage.py in every process, and says\n"
        "which lines, branches and functions of the gated packages none of them runs, and which\n"
        "flags and preset fields none of them varies. It compares nothing with a golden.",
        epilog="examples:\n  golden coverage\n  golden coverage my_case --json > coverage.json\n"
        '  golden coverage --lane cpu --accept --reason "the first figure"\n',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_selection(parser)
    add_jobs(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--accept",
        action="store_true",
        help="store the figures in goldens/, below which golden health lets none fall",
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help="why, for goldens/audit")
    parser.set_defaults(func=coverage)


def coverage(options: argparse.Namespace) -> int:
    """Measures, prints, and stores what is asked for.

    Args:
        options: of the command line.

    Returns:
        The exit status, 0.

    Raises:
        RefusedError: coverage.py is not installed, a case failed, or nothing may be accepted.
        CaseError: the repository says wrongly what is gated.
    """
    root, lane = find_root(), lane_to_run(options)
    refuse_without_coverage()
    declared, gpus = declaration_of(root), gpu_count()
    every = [case for case in discover_cases(root).values() if lane in case.lanes]
    chosen = chosen_cases(discover_cases(root), options.case, lane)
    lacking = {case.name: case.needs.missing(root, gpus, lane_of(root, lane)) for case in chosen}
    skipped = {name: f"it {reason}" for name, reason in lacking.items() if reason is not None}
    able = [case for case in chosen if case.name not in skipped]
    if not able:
        raise RefusedError(f"no case of lane {lane} can run here: {skipped or 'there is none'}")
    if options.accept:
        if not options.reason.strip():
            raise RefusedError("--accept: say why with --reason TEXT")
        refuse_in_part(len(options.case), skipped)
        refuse_dirty(root)
    gated, progress = discover_gated(root), TerminalProgress()
    files = gated_files(root, declared, gated, every)
    jobs = chosen_jobs(options, on_gpus=lane_of(root, lane).on_gpus)
    folder = RunFolder.create(root, lane)
    plan = Plan(
        root=root,
        lane=lane,
        cases=able,
        every_case=every,
        skipped=skipped,
        files=files,
        gated=gated,
        jobs=jobs,
        environment=threads_each(jobs),
        log=folder.log,
        tell=progress.message,
    )
    with progress:
        measured = measure(plan)
    provenance = {
        **measured.provenance,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(root),
        "whole": not options.case and not skipped,
    }
    measured = replace(measured, provenance=provenance)
    write_atomically(folder.path / FILE, encode_json(measured.document()))
    if options.json:
        json.dump(measured.to_json(), sys.stdout, allow_nan=False)
        print()
    else:
        print(render(measured))
        print(f"run: {folder.path.relative_to(root)}")
    if options.accept:
        audit = accept_measured(root, measured, options.reason.strip())
        print(f"accepted; audit: {audit.relative_to(root)}", file=sys.stderr)
    return 0


def render(measured: Measured) -> str:
    """A measurement as text: files by what they miss, cases by what only they run."""
    missing = {n: f for n, f in measured.files.items() if f.missed}
    order = sorted(missing, key=lambda n: -sum(not by for by in missing[n].lines.values()))
    lines = []
    for name in order:
        file = missing[name]
        missed = sum(not by for by in file.lines.values())
        lines.append(f"{name}: {missed} of {len(file.lines)} missed: {in_words(file.missed, 6)}")
        if file.functions[1]:
            shown = ", ".join(file.functions[1][:4])
            left = len(file.functions[1]) - 4
            lines.append(f"  never entered: {shown}" + (f" and {left} more" if left > 0 else ""))
    width = max(len(name) for name in measured.cases)
    lines += [
        f"{name.ljust(width)}  {case.lines} lines, {case.own} of them alone; {case.branches} "
        f"branches, {case.functions} functions; {case.seconds:.1f} s"
        for name, case in measured.cases.items()
    ]
    lines += [f"{name}: skipped, {reason}" for name, reason in measured.skipped.items()]
    lines += [f"{entry}: not measured: {reason}" for entry, reason in measured.omitted.items()]
    reasons = {n: said["reason"] for n, said in measured.defaults.items() if "reason" in said}
    lines += [f"{name}: never varied: {reason}" for name, reason in reasons.items()]
    names = [name for name in measured.defaults if name not in reasons]
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines.append(
            f"{len(names)} fields never varied, without a reason: {', '.join(names[:_SHOWN])}{more}"
        )
    lines.append(f"branches: {measured.branches}; functions: {measured.functions}")
    lines.append(f"lines that some case runs: {measured.lines}")
    return "\n".join(lines)
