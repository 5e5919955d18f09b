"""What a file can move: the cases that a change selects, and the source that a run is made from.

Rules say what each path can reach; code is followed through its imports, from each case's target. A
repository adds rules of its own, which come first, where it declares its cases:

    [tool.golden.reach]
    "configs/*" = "users"

The first pattern that matches decides; `*` crosses folders. What no rule knows reaches everything,
except Python files, which reach their users.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from validation.cases.base import Case
from validation.compat import StrEnum
from validation.config import CaseError, Declaration, read_declaration
from validation.running.source import listed_files
from validation.running.tree import Tree


class Reach(StrEnum):
    """What a changed file can move.

    | reach | cases that a change selects | source of a run |
    | --- | --- | --- |
    | nothing | those that import or name it | if its case imports or names it |
    | users | those that import or name it; all where none does | the same |
    | case | the one in its path | never |
    | gate | all: it decides what is checked, and how, not what a run computes | never |
    | everything | all | always |

    A case's own target is source under any rule.
    """

    NOTHING = "nothing"
    USERS = "users"
    CASE = "case"
    GATE = "gate"
    EVERYTHING = "everything"


Rules = Sequence[tuple[str, Reach]]

_DEFAULTS: Mapping[Reach, Sequence[str]] = {
    Reach.NOTHING: (
        *("goldens/audit/*", "goldens/*/coverage.json"),
        *("docs/*", "doc/*", "*/README*", "README*", "CHANGELOG*", "CHANGES*", "CONTRIBUTING*"),
        *("LICEN[CS]E*", "NOTICE*", "COPYING*", "AUTHORS*", "CITATION*", "CODE_OF_CONDUCT*"),
        *("SECURITY*", "tests/*", "test/*", "conftest.py", "benchmarks/*"),
    ),
    Reach.CASE: ("goldens/*/*/*",),
    # Dependencies are in the environment that a trace records.
    Reach.GATE: (
        *("goldens/*", "pyproject.toml", "golden.toml", "tox.ini", "noxfile.py", "pytest.ini"),
        *("constraints*.txt", "requirements*.txt", "*.lock", "environment*.yml", "Dockerfile"),
        *("ci/*", ".ci/*", ".git*", ".circleci/*", ".buildkite/*"),
        *(".pre-commit-config.yaml", ".editorconfig", ".python-version", ".dockerignore"),
        *(".vscode/*", ".idea/*", ".devcontainer/*"),
    ),
    Reach.EVERYTHING: ("setup.py",),
    Reach.USERS: ("*.py",),
}
DEFAULT_RULES: Rules = [(p, reach) for reach, patterns in _DEFAULTS.items() for p in patterns]


def rules_of(root: Path) -> Rules:
    """Reads the rules of a repository: its own, then those of every repository.

    Args:
        root: the repository.

    Returns:
        The rules; the first that matches decides.

    Raises:
        CaseError: `[tool.golden.reach]` says what is no reach.
    """
    declared = read_declaration(root)
    if declared is None:
        return DEFAULT_RULES
    return [*(_rule(declared, *entry) for entry in declared.reach.items()), *DEFAULT_RULES]


def _rule(declared: Declaration, pattern: str, reach: Any) -> tuple[str, Reach]:
    if reach not in list(Reach):
        known = ", ".join(Reach)
        raise CaseError(f"{declared.key('reach')} {pattern!r} is {known}, not {reach!r}")
    return pattern, Reach(reach)


def reach_of(path: str, rules: Rules) -> Reach:
    """What the rules say of a path."""
    return next((r for pattern, r in rules if fnmatchcase(path, pattern)), Reach.EVERYTHING)


def files_used(case: Case, tree: Tree, rules: Rules) -> set[str]:
    """Files of a tree that a case, or a file that reaches everything, imports or names, and so on.

    Files of the gate are not followed: one that declares cases names every case's target.
    """
    # What a case preloads or decodes with computes nothing that is compared.
    target = tree.module(case.target.partition(":")[0])
    words = [case.target, *case.needs.paths, *_strings(case.settings)]
    waiting = [path for word in words for path in tree.named(word)]
    waiting += [target] if target else []
    waiting += [path for path in tree.names if reach_of(path, rules) is Reach.EVERYTHING]
    found: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        followed = path == target or reach_of(path, rules) is not Reach.GATE
        for word in tree.mentioned(path) if path.endswith(".py") and followed else ():
            inside = tree.below(word) if word.endswith("/") else ()
            waiting += [n for n in inside if reach_of(n, rules) is Reach.USERS] or [word]
    return found & tree.names


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)


def source_of(case: Case, tree: Tree, rules: Rules) -> set[str]:
    """Files of a tree that a run of the case is made from; all code if its target is elsewhere."""
    target = tree.module(case.target.partition(":")[0])
    reach = {name: reach_of(name, rules) for name in tree.names}
    if target is None:
        return {name for name, r in reach.items() if r in (Reach.USERS, Reach.EVERYTHING)}
    used = files_used(case, tree, rules)
    return {n for n in used if reach[n] not in (Reach.GATE, Reach.CASE)} | {target}


def case_source_digest(case: Case, root: Path) -> str:
    """Digests names and contents of the files that a run of the case is made from.

    The target counts by its function and content, not by where it is.

    Args:
        case: the case.
        root: the repository, as its working tree is now.

    Returns:
        BLAKE2b-128, in hexadecimal.

    Raises:
        CaseError: its rules are declared wrongly.
    """
    tree = Tree(root)
    module, _, function = case.target.partition(":")
    target = tree.module(module)
    named: dict[str, bytes] = {}
    for name in source_of(case, tree, rules_of(root)):
        content = tree.content(name)
        blank = name.endswith("__init__.py") and not (content or b"").strip()
        if content is not None and not blank:
            named["" if name == target else name] = content
    hasher = hashlib.blake2b(f"{function}\0".encode(), digest_size=16)
    for name in sorted(named):
        hasher.update(f"{name}\0{len(named[name])}\0".encode())
        hasher.update(named[name])
    return hasher.hexdigest()


def without_reach(root: Path) -> list[str]:
    """A repository's files that can move nothing as far as its rules say."""
    rules = rules_of(root)
    return [name for name in listed_files(root) if reach_of(name, rules) is Reach.NOTHING]
