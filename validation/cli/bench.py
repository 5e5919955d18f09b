"""`golden bench`: throughput and memory against another revision."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from validation.cases import Case, CaseError, discover_cases, discover_throughput_faults
from validation.cli import completion
from validation.cli.common import (
    add_selection,
    chosen_cases,
    chosen_lane,
    publish,
    refuse_no_folder,
)
from validation.cli.progress import TerminalProgress
from validation.cli.suggest import did_you_mean
from validation.config import declaration_of
from validation.files import encode_json, write_atomically
from validation.goldens.acceptance import RefusedError
from validation.run_folder import BENCH_FILE, RunFolder
from validation.running.environment import gpu_count
from validation.running.execution import RunError
from validation.running.source import find_root
from validation.throughput.bench import (
    CPU_PAIRS,
    GPU_PAIRS,
    MIN_PAIRS,
    BenchPlan,
    default_pairs,
    run_bench,
)
from validation.throughput.session import BLOCK_SECONDS
from validation.throughput.statistics import MIN_EFFECT
from validation.throughput.table import render_bench, render_trend, trend_json
from validation.throughput.telemetry import MAX_NEIGHBOURS
from validation.throughput.trend import Point, read_series
from validation.tracking.bench import TREND_FILE


def add_commands(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "bench",
        help="interleaved A/B throughput and memory",
        description="Trains this working tree and a base revision in turns on one machine and says "
        "whether the head is slower or needs more memory. Everything is left in runs/.",
        epilog="examples:\n  golden bench --base origin/main\n"
        "  golden bench my_case --base v1.2 --pairs 120 --profile\n"
        "  golden bench --base HEAD --fault slow-step-3    (would a 3 % slowdown be found?)\n"
        "  golden bench --trend                            (past runs, change points marked)\n\n"
        "exit codes: 0 PASS, 1 FAIL (slower, or more memory), 2 wrong usage or a training that\n"
        "failed, 3 no case could run, 4 UNFIT (throttling, other work on the machine)\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_selection(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--base", metavar="REV", help="revision to compare with")
    what.add_argument(
        "--trend", action="store_true", help="run nothing; show the runs under runs/ as a series"
    )
    parser.add_argument(
        "--pairs",
        type=int,
        help="pairs of a base block and a head block, an even number, at least "
        f"{MIN_PAIRS} (default: {CPU_PAIRS} on the cpu, {GPU_PAIRS} on lanes with GPUs)",
    )
    parser.add_argument(
        "--block",
        type=float,
        default=BLOCK_SECONDS,
        metavar="SECONDS",
        help=f"length of a block, which has one step at least (default: {BLOCK_SECONDS:g})",
    )
    parser.add_argument(
        "--min-effect",
        type=float,
        default=MIN_EFFECT,
        metavar="SHARE",
        help=f"smallest slowdown that raises an alarm (default: {MIN_EFFECT:g})",
    )
    parser.add_argument(
        "--max-neighbours",
        type=float,
        default=MAX_NEIGHBOURS,
        metavar="SHARE",
        help="share of the CPU time above which others make lane cpu UNFIT "
        f"(default: {MAX_NEIGHBOURS:g})",
    )
    parser.add_argument(
        "--profile", action="store_true", help="list kernels and operators even without an alarm"
    )
    fault = parser.add_argument("--fault", metavar="ID", help="plant a known slowdown in the head")
    completion.completed_by(fault, completion.slowdowns)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--report", type=Path, metavar="DIR", help="also write trend.html to DIR")
    parser.set_defaults(func=bench)


def bench(options: argparse.Namespace) -> int:
    """Runs the benchmark; returns its exit code."""
    root, lane = find_root(), chosen_lane(options)
    refuse_no_folder("--report", options.report)
    cases = paced_cases(root, options.case, lane)
    if options.trend:
        return trend(options, lane, [case.name for case in cases])
    gpus = declaration_of(root).lanes[lane].gpus
    pairs = default_pairs(gpus) if options.pairs is None else options.pairs
    if pairs < MIN_PAIRS or pairs % 2:
        raise RefusedError(
            f"--pairs {pairs}: an even number, at least {MIN_PAIRS}: fewer prove nothing"
        )
    if not options.block > 0:
        raise RefusedError(f"--block {options.block:g}: seconds, more than 0")
    plan = BenchPlan(
        root=root,
        lane=lane,
        cases=cases,
        base=options.base,
        pairs=pairs,
        block_seconds=options.block,
        min_effect=options.min_effect,
        max_neighbours=options.max_neighbours,
        profile=options.profile,
        fault=None if options.fault is None else planted(root, options.fault, lane),
    )
    folder = RunFolder.create(root, lane)
    progress = TerminalProgress()
    try:
        with progress:
            result = run_bench(plan, folder.path / "logs", gpu_count(), progress)
    except RunError as error:
        raise RefusedError(f"{error}\nlogs: {folder.path / 'logs'}") from error
    write_atomically(folder.path / BENCH_FILE, encode_json(result.to_json(raw=True)))
    try:
        draw_trend(lane, read_series(root / "runs", lane), [folder.path, options.report])
    except Exception as error:  # a page that cannot be drawn never changes a verdict
        progress.message(f"warning: no {TREND_FILE}: {type(error).__name__}: {error}")
    if options.json:
        json.dump(result.to_json(), sys.stdout, allow_nan=False)
        print()
    else:
        print(render_bench(result))
        print(f"run: {folder.path.relative_to(root)}")
    publish(folder.path, progress)
    return result.exit_code


def trend(options: argparse.Namespace, lane: str, names: Sequence[str]) -> int:
    """Prints past runs; returns 0."""
    series = {
        case: points
        for case, points in read_series(find_root() / "runs", lane).items()
        if case in names
    }
    draw_trend(lane, series, [options.report])
    if options.json:
        json.dump({"lane": lane, "cases": trend_json(series)}, sys.stdout, allow_nan=False)
        print()
    else:
        print(render_trend(series))
    return 0


def draw_trend(
    lane: str, series: Mapping[str, Sequence[Point]], folders: Sequence[Path | None]
) -> None:
    """Writes the trend's page into each folder that is given."""
    from validation.report.trend import write_trend

    for folder in folders:
        if folder is not None:
            write_trend(lane, series, folder / TREND_FILE)


def paced_cases(root: Path, names: Sequence[str], lane: str) -> list[Case]:
    """Chooses the cases to benchmark: those named, or every one of the lane that can be.

    Args:
        root: the repository.
        names: those that the user named; empty for all.
        lane: where they run.

    Returns:
        The cases, at least one.

    Raises:
        CaseError: there is none, or a named one cannot.
    """
    chosen = chosen_cases(discover_cases(root), names, lane)
    able = [case for case in chosen if case.throughput is not None and case.processes == 1]
    if names and len(able) < len(chosen):
        unable = ", ".join(case.name for case in chosen if case not in able)
        raise CaseError(f"{unable}: no benchmark; a case needs `throughput` and a single process")
    if not able:
        raise CaseError(f"lane {lane} has no case with `throughput`")
    return able


def planted(root: Path, name: str, lane: str) -> str:
    """Looks up where a slowdown is planted.

    Args:
        root: the repository.
        name: id of the slowdown.
        lane: where the benchmark runs.

    Returns:
        The slowdown's context manager as `module:function`.

    Raises:
        CaseError: no such slowdown, or not on this lane.
    """
    known = {f.id: f for f in discover_throughput_faults(root).values() if lane in f.lanes}
    if name not in known:
        hint = did_you_mean(name, known)
        raise CaseError(
            f"--fault {name}: no planted slowdown of lane {lane}; {hint}"
            f"there are: {', '.join(known) or 'none'}"
        )
    return known[name].plant
