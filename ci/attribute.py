"""Says whether the code or the environment made a case fail at night.

    python ci/attribute.py CASE --good REV [--bad HEAD] [--lane L]
        [--old-python PREFIX] [--new-python PREFIX] [--json FILE]

Runs the case with {old, new code} in {old, new environment}, as far as both are at hand, judged by
today's gate from outside the checkout, each code by the goldens that were accepted with it. An
environment is the prefix of a Python that has this project's dependencies, the new one's default
this Python. The failing cell is the repeat of the run that failed: if it passes now, it is a FLAKE.
Exits 0 when it has said something (UNDECIDED too, with what is missing), 2 for what is wrong.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from validation.cases import CaseError, discover_cases, lanes_with_cases
from validation.files import write_atomically
from validation.gate.base import checked_out
from validation.gate.bisect import State, resolve_commit, workshop
from validation.goldens.acceptance import RefusedError
from validation.running.environment import default_lane, gpu_count
from validation.running.source import RepositoryError, find_root


class Cause(StrEnum):
    """What made the case fail."""

    CODE = "CODE"
    ENVIRONMENT = "ENVIRONMENT"
    BOTH = "BOTH"
    FLAKE = "FLAKE"
    UNDECIDED = "UNDECIDED"


@dataclass(frozen=True)
class Cell:
    """One code in one environment; each is `old` or `new`."""

    code: str
    environment: str

    def __str__(self) -> str:
        return f"{self.code} code in the {self.environment} environment"


OLD_OLD, OLD_NEW = Cell("old", "old"), Cell("old", "new")
NEW_OLD, NEW_NEW = Cell("new", "old"), Cell("new", "new")
# The failing one first: a flake needs no other.
ORDER = (NEW_NEW, OLD_NEW, NEW_OLD, OLD_OLD)


@dataclass(frozen=True)
class Finding:
    """The cause, why it is that, and what to run next."""

    cause: Cause
    why: str
    next: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked: of which case, between which revisions."""

    case: str
    lane: str
    good: str
    bad: str


def decide(states: Mapping[Cell, State | None], question: Question) -> Finding:
    """The cause, from what each cell gave; None or absent: it could not be run.

    When the failing cell does not build, a cell that does not build fails like it; otherwise such a
    cell says nothing of the case's numbers, and is as good as missing.
    """
    crashes = states.get(NEW_NEW) is State.BROKEN
    fails: dict[Cell, bool] = {}
    for cell in ORDER:
        state = states.get(cell)
        if state is not None and (crashes or state is not State.BROKEN):
            fails[cell] = state is not State.GOOD
    where = f"{question.case} --lane {question.lane}"
    bisect = f"golden bisect {question.good} {question.bad} {where}"
    rebase = (
        f"golden check {where} at {question.good} in each environment, then golden rebase {where} "
        "--env runs/OLD runs/NEW in the new one"
    )
    again = "run this again with " + " and ".join(_wanted(states, fails))

    if NEW_NEW not in fails:
        return Finding(Cause.UNDECIDED, f"{NEW_NEW}: not run", again)
    if not fails[NEW_NEW]:
        return Finding(
            Cause.FLAKE,
            f"{NEW_NEW} passes when it is repeated",
            f"golden explain on the run that failed; golden calibrate {where} if it is noise",
        )
    if fails.get(OLD_OLD):
        why = f"{OLD_OLD} fails too: {question.good} never was good, or its environment is lost"
        return Finding(Cause.UNDECIDED, why, "give an earlier --good, or the --old-python of then")
    code_heals, environment_heals = _heals(fails, OLD_NEW), _heals(fails, NEW_OLD)
    if code_heals and environment_heals:
        why = "only the new code in the new environment fails: neither does alone"
        return Finding(Cause.BOTH, why, bisect)
    if code_heals:
        return Finding(Cause.CODE, f"{OLD_NEW} passes", bisect)
    if environment_heals:
        return Finding(Cause.ENVIRONMENT, f"{NEW_OLD} passes", rebase)
    if code_heals is None or environment_heals is None:
        failing = [str(cell) for cell in (OLD_NEW, NEW_OLD) if fails.get(cell)]
        why = f"{failing[0]} fails too" if failing else "nothing to compare the failure with"
        return Finding(Cause.UNDECIDED, why, again)
    why = "the old code fails in the new environment, and the new code in the old one"
    return Finding(Cause.BOTH, why, f"first {rebase}; then, in the old one, {bisect}")


def _heals(fails: Mapping[Cell, bool], cell: Cell) -> bool | None:
    """Whether going to this cell heals the failure; None when it is not known."""
    return None if cell not in fails else not fails[cell]


def _wanted(states: Mapping[Cell, State | None], fails: Mapping[Cell, bool]) -> list[str]:
    """What the missing cells would need."""
    wanted = []
    missing = [cell for cell in (OLD_NEW, NEW_OLD, NEW_NEW) if cell not in fails]
    broken = [cell for cell in missing if states.get(cell) is State.BROKEN]
    if any(cell.environment == "old" for cell in missing if cell not in broken):
        wanted.append("--old-python PREFIX of the environment that passed")
    if any(cell.environment == "new" for cell in missing if cell not in broken):
        wanted.append("--new-python PREFIX of the environment that failed")
    return wanted + [f"revisions of which the {cell} builds" for cell in broken]


def explore(
    root: Path,
    question: Question,
    pythons: Mapping[str, str | None],
    progress: Callable[[str], None],
) -> dict[Cell, State | None]:
    """Runs the cells whose environment is at hand; only the failing one, if that passes.

    Args:
        root: the repository.
        question: what is asked.
        pythons: `old` and `new` to an interpreter, or None.
        progress: told what each cell gave.

    Raises:
        RefusedError: a revision, or its golden, does not exist, or the gate itself failed.
    """
    commits = {
        "old": resolve_commit(root, question.good),
        "new": resolve_commit(root, question.bad),
    }
    states: dict[Cell, State | None] = {}
    with (
        workshop(root, commits["new"], question.case, question.lane) as shop,
        tempfile.TemporaryDirectory(prefix="golden-attribute-") as folder,
    ):
        for cell in ORDER:
            python, commit = pythons[cell.environment], commits[cell.code]
            if python is None:
                states[cell] = None
                continue
            accepted = Path(folder) / cell.code
            with checked_out(root, commit, ("goldens",)) as tree:
                _keep_golden(tree / "goldens", accepted, question, commit)
            states[cell] = shop.judge(commit, accepted, python)
            progress(f"{cell}: {states[cell]}")
            if cell == NEW_NEW and states[cell] is State.GOOD:
                break
    return states


def _keep_golden(goldens: Path, folder: Path, question: Question, commit: str) -> None:
    if folder.exists():
        return
    if not (goldens / question.lane / question.case).is_dir():
        raise RefusedError(f"{commit[:12]} has no golden of {question.lane}/{question.case}")
    shutil.copytree(goldens, folder / "accepted")


def main(argv: list[str] | None = None) -> int:
    """Runs the cells, decides and prints."""
    options = _parser().parse_args(argv)
    try:
        root = find_root()
        lane = options.lane or default_lane(lanes_with_cases(root), gpu_count())
        question = Question(case=options.case, lane=lane, good=options.good, bad=options.bad)
        case = discover_cases(root).get(options.case)
        if case is None or lane not in case.lanes:
            raise RefusedError(f"lane {lane} has no case {options.case!r}; see golden list")
        pythons = {
            "old": None if options.old_python is None else interpreter(options.old_python),
            "new": interpreter(options.new_python),
        }
        states = explore(root, question, pythons, lambda text: print(text, file=sys.stderr))
    except (RefusedError, RepositoryError, CaseError) as error:
        print(f"attribute: {error}", file=sys.stderr)
        return 2
    finding = decide(states, question)
    print(f"{options.case}: {finding.cause}: {finding.why}\nnext: {finding.next}")
    if options.json:
        cells = [
            {"code": c.code, "environment": c.environment, "state": s} for c, s in states.items()
        ]
        content = {
            "case": question.case,
            "lane": lane,
            "good": question.good,
            "bad": question.bad,
            "verdict": finding.cause,
            "why": finding.why,
            "next": finding.next,
            "cells": cells,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.json, (json.dumps(content, indent=1) + "\n").encode())
    return 0


def interpreter(prefix: Path) -> str:
    """The Python of an environment.

    Raises:
        RefusedError: the folder is no environment.
    """
    python = prefix / "bin" / "python"
    if not python.exists():
        raise RefusedError(f"{prefix}: no Python environment, there is no bin/python in it")
    return str(python)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", metavar="CASE")
    parser.add_argument("--good", required=True, metavar="REV", help="a revision that passed")
    parser.add_argument("--bad", default="HEAD", metavar="REV", help="default: HEAD")
    parser.add_argument("--lane", help="default: what this machine is")
    parser.add_argument("--old-python", type=Path, metavar="PREFIX", help="default: not at hand")
    parser.add_argument(
        "--new-python",
        type=Path,
        metavar="PREFIX",
        default=Path(sys.prefix),
        help="default: this Python's",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the finding here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
