"""Which cases a change can move: `python ci/select_cases.py BASE --lane cpu`, one name a line.

`validation.running.reach` says what each changed file can reach; code is traced through its
imports, from each case's target, in the base and in the working tree. A change that reaches nothing
still runs one case, since a gate that compares nothing proves nothing.

Pre-merge the base's copy of this file and of `validation` decides (`ci/jobs/common.sh`), and the
base's `[tool.golden.reach]`, as the base's judge does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from validation.cases import Case, CaseError, discover_cases
from validation.config import declaration_of
from validation.gate.base import checked_out
from validation.gate.verdict import EXIT_CODES, USAGE_EXIT_CODE, Verdict
from validation.running.reach import Reach, files_used, reach_of, rules_of
from validation.running.source import RepositoryError, find_root, git
from validation.running.tree import Tree


def main() -> int:
    """Prints the cases; returns 0, 2 for a wrong base, 3 when the lane has no case."""
    options = _parser().parse_args()
    try:
        root = find_root()
        declared = declaration_of(*options.declared_by, root)
        # With a base that judges, nothing of this tree is imported.
        cases = list(discover_cases(next(iter(options.declared_by), root), declared).values())
        if options.base:
            changed = changed_files(root, options.base)
            with checked_out(root, options.base, _folders(root, options.base)) as base:
                chosen = select(changed, cases, options.lane, [root, base])
        else:
            chosen = [case.name for case in cases if options.lane in case.lanes]
    except (RepositoryError, CaseError) as error:
        print(f"select_cases: {error}", file=sys.stderr)
        return USAGE_EXIT_CODE
    if not chosen:
        print(f"select_cases: lane {options.lane} has no case to run", file=sys.stderr)
        return EXIT_CODES[Verdict.INVALID]
    print("\n".join(chosen))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", nargs="?", metavar="BASE", help="default: every case of the lane")
    parser.add_argument("--lane", default="cpu", help="default: cpu")
    parser.add_argument(
        "--declared-by",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="whose [tool.golden] names the cases, if it has one; default: the checkout's",
    )
    return parser


def changed_files(root: Path, base: str) -> list[str]:
    """Files that differ between the working tree and where it left `base`, untracked ones too.

    Raises:
        RepositoryError: no such revision, or no common ancestor.
    """
    fork = git(root, "merge-base", base, "HEAD").strip()
    changed = git(root, "diff", "--name-only", "--no-renames", "-z", fork)
    untracked = git(root, "ls-files", "-z", "--others", "--exclude-standard")
    return sorted({name for name in (changed + untracked).split("\0") if name})


def _folders(root: Path, base: str) -> list[str]:
    """What a revision has at its root, in which imports may be: all but its goldens."""
    return [n for n in git(root, "ls-tree", "--name-only", base).splitlines() if n != "goldens"]


def select(
    changed: Collection[str], cases: Sequence[Case], lane: str, trees: Sequence[Path]
) -> list[str]:
    """Names of the cases that the changed files can move, in the cases' order.

    Args:
        changed: paths relative to the repository.
        cases: those of every lane.
        lane: whose cases are chosen.
        trees: checkouts in which imports are followed: the head's, and the base's, where a deleted
            import still is. The last one's rules hold.

    Returns:
        At least one name, if the lane has any case.
    """
    names = [case.name for case in cases if lane in case.lanes]
    rules = rules_of(trees[-1])
    reach = {path: reach_of(path, rules) for path in changed}
    if not {Reach.EVERYTHING, Reach.GATE}.isdisjoint(reach.values()):
        return names
    chosen: set[str] = set()
    used: dict[str, set[str]] = {}
    if not {Reach.USERS, Reach.NOTHING}.isdisjoint(reach.values()):
        followed = [Tree(tree) for tree in trees]
        used = {
            case.name: set().union(*(files_used(case, tree, rules) for tree in followed))
            for case in cases
        }
    for path, found in reach.items():
        if found is Reach.CASE:
            _, of_lane, name, *_ = path.split("/")
            chosen |= {name} & set(names) if of_lane == lane else set()
            continue
        users = {name for name, files in used.items() if path in files}
        if found is Reach.USERS and not users:
            # Used by no case of any lane as far as one can see: do not trust one's eyes.
            return names
        chosen |= users & set(names)
    chosen |= {c.invariant.reference for c in cases if c.name in chosen and c.invariant} & set(
        names
    )
    return [name for name in names if name in chosen] or names[:1]


if __name__ == "__main__":
    sys.exit(main())
