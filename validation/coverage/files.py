"""The files whose coverage counts, and what of them is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from validation.cases import Case, CaseError, Gated
from validation.config import Declaration
from validation.coverage.omissions import omitted_lines
from validation.running.reach import Reach, files_used, reach_of, rules_of
from validation.running.tree import Tree

_ROOTS = ("", "src/")


@dataclass(frozen=True)
class GatedFiles:
    """The gated code of a checkout.

    Attributes:
        names: Python files, relative to the repository.
        omitted: pattern, or `file:function`, or `file:function:statement` -> why it is not
            measured.
    """

    names: Sequence[str]
    omitted: Mapping[str, str]

    def left_out(self, name: str, source: str) -> set[int]:
        """The lines of a file that are not measured.

        Args:
            name: of the file.
            source: its text.

        Returns:
            Numbers of lines.

        Raises:
            CaseError: an omission names nothing that the file has.
        """
        found: set[int] = set()
        for entry in self.omitted:
            pattern, colon, inside = entry.partition(":")
            if colon and fnmatchcase(name, pattern):
                found |= omitted_lines(source, inside, entry)
        return found


def gated_files(
    root: Path, declared: Declaration, gated: Gated | None, cases: Sequence[Case]
) -> GatedFiles:
    """Every Python file of the gated packages, but for the cases and the faults themselves.

    Args:
        root: the checkout.
        declared: names the modules with cases and faults.
        gated: what the repository says; None takes the packages that the cases' targets import.
        cases: of the lane.

    Returns:
        The files, without those that the repository omits, and all that it omits.

    Raises:
        CaseError: there is no such package, or nothing in it.
    """
    tree = Tree(root)
    python = sorted(name for name in tree.names if name.endswith(".py"))
    packages = _imported(cases, tree, root) if gated is None else gated.packages
    found: dict[str, None] = {}
    for package in packages:
        inside = [name for name in python if _part_of(name, package)]
        if not inside:
            raise CaseError(
                f"GATED names the package {package!r}, which {root} does not have: name a folder "
                "with an __init__.py, or a module, as Python imports it"
            )
        found.update(dict.fromkeys(inside))
    omitted = {} if gated is None else dict(gated.omitted)
    for entry in omitted:
        pattern = entry.partition(":")[0]
        if not any(fnmatchcase(name, pattern) for name in found):
            raise CaseError(f"GATED omits {entry!r}, which no file of the gated packages matches")
    own = (*declared.cases, *declared.faults)
    names = [
        name
        for name in found
        if not any(_part_of(name, module) for module in own)
        and not any(":" not in entry and fnmatchcase(name, entry) for entry in omitted)
    ]
    if not names:
        raise CaseError(f"the gated packages {', '.join(packages) or '(none)'} have no Python file")
    files = GatedFiles(names, omitted)
    for name in names:
        files.left_out(name, (root / name).read_text(encoding="utf-8"))  # refuses what is not there
    return files


def _imported(cases: Sequence[Case], tree: Tree, root: Path) -> list[str]:
    rules = rules_of(root)
    used = {name for case in cases for name in files_used(case, tree, rules)}
    found = set()
    for name in used:
        if name.endswith(".py") and reach_of(name, rules) is Reach.USERS:
            inside = name.removeprefix("src/")
            found.add(inside.partition("/")[0].removesuffix(".py"))
    return sorted(found)


def _part_of(name: str, module: str) -> bool:
    """Whether a file is a module, or in a package."""
    place = module.replace(".", "/")
    return any(name == f"{root}{place}.py" or name.startswith(f"{root}{place}/") for root in _ROOTS)
