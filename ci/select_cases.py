"""Which cases a change can move: `python ci/select_cases.py BASE --lane cpu`, one name a line.

A table of paths says what each changed file can reach; code is traced through its imports, from
each case's target, in the base and in the working tree. What no rule knows selects every case. A
change that reaches nothing still runs one case, since a gate that compares nothing proves nothing.

Pre-merge the base's copy of this file decides (`ci/jobs/common.sh`), as the base's judge does.
"""

from __future__ import annotations

import argparse
import ast
import functools
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from validation.cases import Case, CaseError, discover_cases
from validation.config import declaration_of
from validation.goldens.judge import checked_out
from validation.source import RepositoryError, find_root, git
from validation.verdict import EXIT_CODES, USAGE_EXIT_CODE, Verdict

PACKAGES = ("vpmoe", "validation")


class Reach(Enum):
    """What a changed file can move."""

    EVERYTHING = "every case"
    NOTHING = "no case"
    THE_CASE = "the case in its path"
    ITS_USERS = "the cases whose targets import or name it"


# The first pattern that matches decides; `*` crosses folders. No match: everything.
RULES: Sequence[tuple[str, Reach]] = (
    ("goldens/audit/*", Reach.NOTHING),
    ("goldens/*/*/*", Reach.THE_CASE),
    ("vpmoe/*.py", Reach.ITS_USERS),
    ("validation/cases/vpmoe/__init__.py", Reach.EVERYTHING),
    ("validation/cases/vpmoe/faults/*", Reach.EVERYTHING),  # any of them may be the canary
    ("validation/cases/vpmoe/*.py", Reach.ITS_USERS),
    ("configs/*", Reach.ITS_USERS),
    ("data/sample/*.jsonl", Reach.ITS_USERS),
    ("benchmarks/*", Reach.NOTHING),
    ("docs/*", Reach.NOTHING),
    ("tests/*", Reach.NOTHING),
    ("LICENSE", Reach.NOTHING),
    ("README.md", Reach.NOTHING),
)

_MODULE = re.compile(rf"({'|'.join(PACKAGES)})(\.\w+)*(:\w+)?")


def main() -> int:
    """Prints the cases; returns 0, 2 for a wrong base, 3 when the lane has no case."""
    options = _parser().parse_args()
    try:
        root = find_root()
        declared = declaration_of(*options.declared_by, root)
        every = discover_cases(root, declared).values()
        cases = [case for case in every if options.lane in case.lanes]
        if options.base:
            changed = changed_files(root, options.base)
            with checked_out(root, options.base, (*PACKAGES, "configs", "data")) as base:
                chosen = select(changed, cases, options.lane, [root, base])
        else:
            chosen = [case.name for case in cases]
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


def select(
    changed: Collection[str], cases: Sequence[Case], lane: str, trees: Sequence[Path]
) -> list[str]:
    """Names of the cases that the changed files can move, in the cases' order.

    Args:
        changed: paths relative to the repository.
        cases: those of the lane.
        lane: the lane.
        trees: checkouts in which imports are followed: the head's, and the base's, where a deleted
            import still is.

    Returns:
        At least one name, if there is any case.
    """
    names = [case.name for case in cases]
    used: Mapping[str, set[str]] | None = None
    chosen: set[str] = set()
    for path in changed:
        reach = reach_of(path)
        if reach is Reach.THE_CASE:
            _, of_lane, name, *_ = path.split("/")
            chosen |= {name} & set(names) if of_lane == lane else set()
        elif reach is Reach.ITS_USERS:
            if used is None:
                used = {c.name: set().union(*(files_used(c, t) for t in trees)) for c in cases}
            users = {name for name, files in used.items() if path in files}
            # Used by no case of any lane as far as one can see: do not trust one's eyes.
            chosen |= users or (set() if _used_elsewhere(path, lane, trees) else set(names))
        elif reach is Reach.EVERYTHING:
            return names
    chosen |= {c.law.reference for c in cases if c.name in chosen and c.law} & set(names)
    return [name for name in names if name in chosen] or names[:1]


def reach_of(path: str) -> Reach:
    """What the table says of a path."""
    return next((r for pattern, r in RULES if fnmatchcase(path, pattern)), Reach.EVERYTHING)


def _used_elsewhere(path: str, lane: str, trees: Sequence[Path]) -> bool:
    others = [case for case in discover_cases(find_root()).values() if lane not in case.lanes]
    return any(path in files_used(case, tree) for case in others for tree in trees)


def files_used(case: Case, tree: Path) -> set[str]:
    """Files of a checkout that a case imports or names, relative to it."""
    # What a case preloads or decodes with computes nothing that is compared.
    words = [case.target, *_strings(dict(case.settings))]
    found: set[str] = set()
    waiting = [path for word in words for path in _files(word, tree)]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        # A file that moves every case may name every case, such as the one that declares them.
        if path.endswith(".py") and reach_of(path) is not Reach.EVERYTHING:
            waiting += _mentioned(tree, path)
    return found


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)


@functools.cache  # the cases share most of what they use
def _mentioned(tree: Path, path: str) -> Sequence[str]:
    """Files that a file imports, lazily or not, or names in a string."""
    try:
        parsed = ast.parse((tree / path).read_text())
    except SyntaxError:
        return ()  # every case that imports it fails, whichever of them is chosen
    found = (name for word in _words(parsed, path) for name in _files(word, tree))
    return tuple(dict.fromkeys(found))


def _words(parsed: ast.Module, path: str) -> Iterator[str]:
    """Modules, as they are imported, and strings."""
    package = path.removesuffix(".py").removesuffix("/__init__").split("/")
    if not path.endswith("__init__.py"):
        package = package[:-1]
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _files(word: str, tree: Path) -> list[str]:
    """The file that a word names: a module with its parents' `__init__.py`, or a path."""
    if _MODULE.fullmatch(word):
        parts = word.partition(":")[0].split(".")
        places = ["/".join([*parts[:n], "__init__.py"]) for n in range(1, len(parts) + 1)]
        places.append("/".join(parts) + ".py")
        return [place for place in places if (tree / place).is_file()]
    if "/" not in word or len(word) > 200 or word.startswith(("/", ".")) or "\n" in word:
        return []
    return [word] if (tree / word).is_file() else []


if __name__ == "__main__":
    sys.exit(main())
