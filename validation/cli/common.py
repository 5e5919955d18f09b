"""What the commands share: choosing cases and lanes, MLflow."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from validation.cases import Case, CaseError, lanes_with_cases
from validation.cli import completion
from validation.cli.progress import TerminalProgress
from validation.cli.suggest import did_you_mean, unknown
from validation.config import declaration_of, lane_of
from validation.files import DamagedFileError
from validation.gate.base import judged_declaration, sources_of
from validation.goldens import Golden, GoldenStore
from validation.goldens.acceptance import RefusedError
from validation.running.environment import default_lane, gpu_count, here
from validation.running.machine import unfit
from validation.running.source import find_root


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Adds the positional cases and `--lane`."""
    add_case(parser, nargs="*", help="default: every case of the lane")
    add_lane(parser)


def add_case(parser: argparse.ArgumentParser, name: str = "case", **more: Any) -> None:
    """Adds an argument that names a case, whose value shells complete."""
    action = parser.add_argument(name, metavar="CASE", **more)
    completion.completed_by(action, completion.cases)


def add_lane(parser: argparse.ArgumentParser) -> None:
    """Adds `--lane`; the repository knows its lanes, not the parser: see `chosen_lane`."""
    action = parser.add_argument("--lane", metavar="LANE", help="default: what this machine is")
    completion.completed_by(action, completion.lanes)


def chosen_lane(options: argparse.Namespace) -> str:
    """Returns the lane asked for, or what this machine is of those that have cases.

    Args:
        options: of the command line.

    Returns:
        Name of a declared lane.

    Raises:
        CaseError: the repository declares no such lane.
    """
    root = find_root()
    judge = getattr(options, "judged_by", None)
    declared = judged_declaration(root, judge)
    if options.lane is None:
        return default_lane(lanes_with_cases(sources_of(root, judge), declared), gpu_count())
    if options.lane not in declared.lanes:
        hint = did_you_mean(options.lane, declared.lanes)
        raise CaseError(
            f"--lane {options.lane}: lanes are {', '.join(declared.lanes)}; "
            f"{declared.file} declares no other under [{declared.section('lanes')}]"
            + (f"; {hint.rstrip()}" if hint else "")
        )
    return str(options.lane)


def lane_to_run(options: argparse.Namespace) -> str:
    """Returns the chosen lane, if this machine can serve it.

    Args:
        options: of the command line.

    Returns:
        Name of the lane.

    Raises:
        CaseError: the repository declares no such lane.
        RefusedError: it cannot, and why.
    """
    lane = chosen_lane(options)
    refusal = unfit(declaration_of(find_root()).lanes[lane], gpu_count())
    if refusal is not None:
        raise RefusedError(refusal)
    return lane


def killing_goldens(
    root: Path, lane: str, cases: Iterable[Case], progress: TerminalProgress
) -> dict[str, Golden]:
    """Loads the goldens that can catch a planted bug or a mutant on this machine.

    Args:
        root: the repository.
        lane: lane of the goldens.
        cases: of the lane; one that cannot run here is left out.
        progress: told of a case whose golden is missing or damaged, which is left out, too.

    Returns:
        The golden of this machine's environment, or the nearest to it, by case.
    """
    store, declared, gpus = GoldenStore(root / "goldens"), lane_of(root, lane), gpu_count()
    found: dict[str, Golden] = {}
    for case in cases:
        if case.needs.missing(root, gpus, declared) is not None:
            continue
        try:
            found[case.name] = store.nearest(lane, case.name, here(declared, case.processes))
        except DamagedFileError as error:
            progress.message(f"{case.name} kills nothing: {error}")
    return found


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Adds `--jobs`."""
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="runs at a time (default: 2 on a lane without GPUs where there are two cores, or 1)",
    )


def chosen_jobs(options: argparse.Namespace, *, on_gpus: bool) -> int:
    """Decides how many runs to make at a time.

    Args:
        options: of the command line.
        on_gpus: whether the lane has GPUs, where one run at a time is the default.

    Returns:
        At least 1.

    Raises:
        RefusedError: less than one.
    """
    if options.jobs is not None and options.jobs < 1:
        raise RefusedError(f"--jobs {options.jobs}: at least 1")
    return options.jobs or (1 if on_gpus else min(2, len(os.sched_getaffinity(0))))


def threads_each(jobs: int) -> dict[str, str]:
    """Variables that share the cores among so many runs, unless the user has said how."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    threads = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def chosen_cases(cases: Mapping[str, Case], names: Sequence[str], lane: str) -> list[Case]:
    """Chooses the cases named, or every one of the lane.

    Args:
        cases: every declared case, by name.
        names: those that the user named; empty for all.
        lane: where they would run.

    Returns:
        The cases, each once.

    Raises:
        CaseError: an unknown case, or one that does not run on the lane.
    """
    if not names:
        return [case for case in cases.values() if lane in case.lanes]
    chosen = []
    for name in dict.fromkeys(names):
        if name not in cases:
            raise CaseError(unknown("case", name, cases))
        if lane not in cases[name].lanes:
            raise CaseError(f"case {name} runs on {', '.join(cases[name].lanes)}, not on {lane}")
        chosen.append(cases[name])
    return chosen


def refuse_no_folder(flag: str, folder: Path | None) -> None:
    """Makes the folder of an option before the work whose result it receives.

    Args:
        flag: the option, for messages.
        folder: its value; None makes nothing.

    Raises:
        RefusedError: it cannot be a folder, or cannot be written.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise RefusedError(f"{flag} {folder}: is a file; name a folder") from error
    except OSError as error:
        # Of a full disk it is UNFIT all the same (`validation.shortage`).
        raise RefusedError(f"{flag} {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RefusedError(f"{flag} {folder}: cannot be written")


def refuse_no_file(flag: str, path: Path | None) -> None:
    """As `refuse_no_folder`, of a file that is to be written."""
    if path is None:
        return
    if path.is_dir():
        raise RefusedError(f"{flag} {path}: is a folder; name a file")
    refuse_no_folder(flag, path.parent)


def publish(run_dir: Path, progress: TerminalProgress) -> None:
    """Logs a run folder to MLflow where that is installed; the verdict is fixed by then."""
    if os.environ.get("GOLDEN_MLFLOW") == "0":
        return
    from validation.tracking.publish import publish_run

    try:
        outcome = publish_run(run_dir, store=None)
        problem = "" if outcome.sent else outcome.message
    except OSError as error:  # on a full disk not even that can be noted
        problem = str(error)
    if problem:
        progress.message(f"warning: not logged to MLflow: {problem}; send it later: golden publish")
