"""`golden faults`: the kill matrix."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from validation.cases import CaseError, discover_benign, discover_cases, discover_faults
from validation.cli import completion, suggest
from validation.cli.common import (
    add_jobs,
    add_lane,
    chosen_jobs,
    killing_goldens,
    lane_to_run,
    refuse_no_folder,
)
from validation.cli.progress import TerminalProgress
from validation.config import lane_of
from validation.files import encode_json, write_atomically
from validation.goldens import GoldenStore
from validation.goldens.acceptance import RefusedError
from validation.power.ledger import own_files, state_of
from validation.power.matrix import Matrix, scores
from validation.power.page import (
    headline,
    margin_of,
    render_html,
    render_markdown,
    verdict_of,
)
from validation.power.planting import MatrixPlan, run_matrix, unseen_environment
from validation.power.proof import record_matrix
from validation.power.results import Results
from validation.run_folder import RunFolder
from validation.running.environment import describe
from validation.running.source import commit, find_root


def add_commands(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "faults",
        help="plant each known bug and print the kill matrix",
        description="Plants each known bug in a run of its own and says which case caught it,\n"
        "at which step, and where it was traced to. Runs use other threads, vector\n"
        "instructions and perturbed weights than calibration did (the golden's settings on a\n"
        "lane with GPUs); clean runs, benign changes\n"
        "and every bug's no-op control (the same patch without effect) must pass there.\n"
        "Bugs caught with a large margin are listed with the goldens, for checks to plant.\n"
        "Exits 1 with survivors or false alarms.",
        epilog="examples:\n  golden faults\n  golden faults --only window-plus-one\n"
        "  golden faults --full --json > matrix.json   (every case on every fault)\n"
        "  golden faults --output docs/power           (matrix.md, matrix.html, matrix.json)\n"
        "  golden faults --resume                      (after an interruption)\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    only = parser.add_argument(
        "--only", action="append", metavar="ID", help="this fault; repeatable"
    )
    completion.completed_by(only, completion.faults)
    parser.add_argument("--full", action="store_true", help="do not stop at the first kill")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="make only the runs that the last call on this code has not finished",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="also write the matrix to DIR, as documents"
    )
    add_lane(parser)
    add_jobs(parser)
    parser.set_defaults(func=faults)


def faults(options: argparse.Namespace) -> int:
    """Runs the kill matrix and prints it.

    Args:
        options: of the command line.

    Returns:
        The exit status: 1 with survivors or false alarms, else 0.

    Raises:
        CaseError: an unknown fault.
        RefusedError: no golden to judge by, or no jobs.
    """
    root, lane = find_root(), lane_to_run(options)
    refuse_no_folder("--output", options.output)
    cases, known = discover_cases(root), discover_faults(root)
    unknown = [name for name in options.only or () if name not in known]
    if unknown:
        raise CaseError(suggest.unknown("fault", unknown[0], known))
    chosen = [
        fault
        for fault in known.values()
        if lane in fault.lanes and (not options.only or fault.id in options.only)
    ]
    harmless = discover_benign(root).values()
    benign = [] if options.only else [b for b in harmless if lane in b.lanes]
    progress = TerminalProgress()
    of_lane = [case for case in cases.values() if lane in case.lanes]
    goldens = killing_goldens(root, lane, of_lane, progress)
    if not goldens or not chosen:
        raise RefusedError(f"lane {lane} has {len(goldens)} goldens and {len(chosen)} faults")
    folder = RunFolder.create(root, lane)
    jobs = chosen_jobs(options, on_gpus=lane_of(root, lane).on_gpus)
    plants = [f.plant for f in known.values()] + [b.plant for b in harmless]
    targets = [case.target for case in cases.values()]
    state = state_of(root, lane, goldens, without=own_files(root, plants, targets))
    provenance = {**state, "environment": describe(lane_of(root, lane))}
    results = Results(
        root / "runs" / f"faults-{lane}.jsonl",
        provenance,
        lane=lane,
        full=options.full,
        resume=options.resume,
    )
    plan = MatrixPlan(
        root=root,
        lane=lane,
        goldens=goldens,
        cases=cases,
        full=options.full,
        jobs=jobs,
        log=folder.log,
        results=results,
    )
    with progress:
        matrix = run_matrix(plan, chosen, benign, progress)
    # The digest of all the code: of what decides the results one by one, too.
    provenance |= {"source": state_of(root, lane, ())["source"], "commit": commit(root)}
    matrix = replace(matrix, provenance=provenance)
    where = _where(plan)
    write_atomically(folder.path / "faults.json", encode_json(matrix.details()))
    write_atomically(folder.path / "faults.html", render_html(matrix, where).encode())
    if options.output:
        documents = {
            "matrix.json": encode_json(matrix.details()),
            "matrix.html": render_html(matrix, where).encode(),
            "matrix.md": render_markdown(matrix, where).encode(),
        }
        for name, content in documents.items():
            write_atomically(options.output / name, content)
    # A check stops after a few steps, which whole runs say nothing of.
    store = GoldenStore(root / "goldens")
    for line in [] if options.full else record_matrix(store, list(known.values()), goldens, matrix):
        progress.message(line)
    if options.json:
        json.dump(matrix.to_json(), sys.stdout, allow_nan=False)
        print()
    else:
        print(render(matrix))
        print(f"run: {folder.path.relative_to(root)}")
    return 1 if matrix.survivors or matrix.false_alarms else 0


def _where(plan: MatrixPlan) -> str:
    """The environment of the planted runs, in words."""
    if lane_of(plan.root, plan.lane).on_gpus:
        return f"Lane {plan.lane}, in the goldens' settings."
    chosen = {n: v for g in plan.goldens.values() for n, v in unseen_environment(g).items()}
    settings = ", ".join(f"{name}={value}" for name, value in sorted(chosen.items()))
    return f"{settings}, initial weights moved by one unit in the last place."


def render(matrix: Matrix) -> str:
    """The matrix as text, survivors first."""
    rows = [("fault", "category", "verdict", "margin", "case", "step", "by", "traced to")]
    for kill in matrix.kills:
        first = kill.sightings[0] if kill.sightings else None
        step, by = ("-", "-") if first is None else (str(first.first.step), first.comparator)
        place = kill.localised or kill.fault.equivalent or kill.note or "-"
        mark = "" if kill.localised_right or not kill.killed else f" (is in {kill.fault.component})"
        row = kill.fault.id, kill.fault.category, verdict_of(kill), margin_of(kill), kill.case
        rows.append((*row, step, by, place + mark))
    widths = [max(len(row[column]) for row in rows) for column in range(7)]
    lines = [
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[7]])
        for row in rows
    ]
    lines += [f"false alarm: {entry.label}: {entry.note}" for entry in matrix.false_alarms]
    lines += [f"{name}: {value}" for name, value in scores(matrix).items()]
    nearest = ", ".join(f"{k.fault.id} {margin_of(k)}" for k in matrix.smallest_margins())
    lines.append(f"smallest margins: {nearest or 'none'}")
    return "\n".join([*lines, headline(matrix)])
