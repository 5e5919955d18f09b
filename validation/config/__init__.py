"""What a repository declares: `[tool.golden]` of its `pyproject.toml`, or a `golden.toml`.

    [tool.golden]
    cases = ["my_package.golden_cases"]     # modules with CASES, importable from the checkout
    faults = ["my_package.golden_faults"]   # modules with FAULTS
    packages = ["shared"]                   # entry points of installed packages to take in, too

    [tool.golden.lanes.a100]                # the lane `cpu` needs no entry
    gpus = 1
    capability = ["8.0"]
    modules = ["triton"]

`[[tool.golden.gaps]]` lists what `golden health` finds and nobody can repair today
(`validation.config.gaps`); `[tool.golden.runs]` says how long run folders are kept
(`validation.config.retention`). `golden.toml` has the same keys at its top level. An entry point of
the groups `validation.cases` and `validation.faults` is how an installed package shares cases; it
is off unless `packages` names it, so that the cases of a checkout never depend on what else is
installed.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from validation.compat import tomllib
from validation.config.errors import CaseError as CaseError
from validation.config.gaps import Gap, parse_gaps
from validation.config.python_path import real_entries
from validation.config.retention import Retention, parse_retention
from validation.files import safe_name
from validation.limits import MAX_TOML_BYTES

PYPROJECT, GOLDEN_TOML = "pyproject.toml", "golden.toml"
FILES = (PYPROJECT, GOLDEN_TOML)
CPU = "cpu"
_KEYS = ("cases", "faults", "packages", "lanes", "recorded", "reach", "gaps", "runs")
# Packages whose versions every trace keeps where a repository names none.
RECORDED = ("numpy", "torch", "triton")
_LANE_KEYS = ("gpus", "capability", "modules")
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_PACKAGE = re.compile(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?")
_CAPABILITY = re.compile(r"\d+\.\d+")
# Folders of goldens/ that are no lane.
_RESERVED = ("audit",)
_EXAMPLE = """\
  [tool.golden]
  cases = ["my_package.golden_cases"]    # a module with CASES, importable from the checkout"""


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A lane: what it needs of a machine, and what is recorded of the software there.

    Attributes:
        name: of the lane, and of its folder in `goldens/`.
        gpus: CUDA devices; a lane of none hides every accelerator from its runs.
        capabilities: CUDA compute capabilities that serve it, such as `9.0`; empty is any.
        modules: importable Python modules.
        recorded: installed packages whose versions each trace keeps.
    """

    name: str
    gpus: int = 0
    capabilities: Sequence[str] = ()
    modules: Sequence[str] = ()
    recorded: Sequence[str] = RECORDED

    @property
    def on_gpus(self) -> bool:
        """Whether its runs use GPUs."""
        return self.gpus > 0


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a repository declares.

    Attributes:
        file: where it says so.
        cases: modules with `CASES`.
        faults: modules with `FAULTS`.
        packages: names of entry points to take in.
        lanes: by name; always has `cpu`.
        reach: pattern of paths -> what a change of them can move; see `validation.running.reach`.
        gaps: findings of `golden health` that are known.
        runs: how long run folders are kept.
    """

    file: Path
    cases: Sequence[str] = ()
    faults: Sequence[str] = ()
    packages: Sequence[str] = ()
    lanes: Mapping[str, Lane]
    reach: Mapping[str, str] = field(default_factory=dict)
    gaps: Sequence[Gap] = ()
    runs: Retention = field(default_factory=Retention)

    def key(self, name: str) -> str:
        """A key as messages name it, with its file."""
        return f"{self.file}: {self.section(name)}"

    def section(self, *names: str) -> str:
        """Keys as one would write them in the file."""
        return _section(self.file, *names)


def declaration_of(*folders: Path) -> Declaration:
    """Returns the declaration of the first of these folders that has one.

    Args:
        *folders: roots of checkouts.

    Returns:
        What it declares.

    Raises:
        CaseError: none has one, or it is not as this module says.
    """
    for folder in folders:
        found = read_declaration(folder)
        if found is not None:
            return found
    raise CaseError(
        f"{folders[-1]}: declares no cases; write into {PYPROJECT}\n{_EXAMPLE}\n"
        f"or the same keys, without the section, into {GOLDEN_TOML}"
    )


def read_declaration(folder: Path) -> Declaration | None:
    """Reads what a folder declares in one of its files.

    Args:
        folder: root of a checkout.

    Returns:
        The declaration, or None when neither file declares anything.

    Raises:
        CaseError: both files do, or a key is unknown or of another type.
    """
    declaring = {
        path: table
        for path in (folder / name for name in FILES)
        if (table := _table(path)) is not None
    }
    if len(declaring) > 1:
        one, other = declaring
        raise CaseError(f"{one} ([tool.golden]) and {other} both declare cases: keep one of them")
    return next((_parse(path, table) for path, table in declaring.items()), None)


def _table(path: Path) -> Any:
    """The declaring table of a file, unchecked; None without the file or the table."""
    try:
        if path.stat().st_size > MAX_TOML_BYTES:
            raise CaseError(f"{path}: more than {MAX_TOML_BYTES:,} bytes; declare cases in less")
        document = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        return None
    except CaseError:
        raise
    except (OSError, ValueError) as error:  # TOML and UTF-8 errors are ValueErrors
        raise CaseError(f"{path}: cannot be read: {error}") from error
    if path.name == GOLDEN_TOML:
        return document or None
    tool = document.get("tool", {})
    return tool.get("golden") if isinstance(tool, dict) else None


def _parse(path: Path, table: Any) -> Declaration:
    if not isinstance(table, dict):
        raise CaseError(f"{path}: {_section(path)}: a table, not {table!r}")
    _refuse_unknown(f"{path}: {_section(path)}", table, _KEYS)
    modules = {
        key: _texts(f"{path}: {_section(path, key)}", table.get(key, []), _MODULE, "module")
        for key in ("cases", "faults")
    }
    packages = _texts(f"{path}: {_section(path, 'packages')}", table.get("packages", []))
    if not modules["cases"] and not packages:
        raise CaseError(f"{path}: {_section(path)} names no case: write\n{_EXAMPLE}")
    lanes = table.get("lanes", {})
    if not isinstance(lanes, dict):
        raise CaseError(f"{path}: {_section(path, 'lanes')}: a table of lanes, not {lanes!r}")
    place = f"{path}: {_section(path, 'recorded')}"
    recorded = _texts(place, table.get("recorded", list(RECORDED)), _PACKAGE, "package")
    named = {name: _lane(path, name, entry, recorded) for name, entry in lanes.items()}
    lanes = {CPU: Lane(name=CPU, recorded=recorded), **named}
    reach = table.get("reach", {})
    if not isinstance(reach, dict):
        raise CaseError(f'{path}: {_section(path, "reach")}: a table of "pattern" = "reach"')
    try:
        gaps = parse_gaps(table.get("gaps", []))
    except ValueError as error:
        raise CaseError(f"{path}: {_section(path, 'gaps')}: {error}") from error
    try:
        runs = parse_retention(table.get("runs", {}))
    except ValueError as error:
        raise CaseError(f"{path}: {_section(path, 'runs')}: {error}") from error
    return Declaration(
        file=path, packages=packages, lanes=lanes, reach=reach, gaps=gaps, runs=runs, **modules
    )


def _lane(path: Path, name: str, entry: Any, recorded: Sequence[str]) -> Lane:
    place = f"{path}: {_section(path, 'lanes', name)}"
    if not safe_name(name) or name in _RESERVED:
        raise CaseError(
            f"{place}: a lane's name has letters, digits, '.', '_', '-', and is a folder"
        )
    if not isinstance(entry, dict):
        raise CaseError(f"{place}: a table with gpus = NUMBER, not {entry!r}")
    _refuse_unknown(place, entry, _LANE_KEYS)
    gpus = entry.get("gpus")
    if isinstance(gpus, bool) or not isinstance(gpus, int) or gpus < 0:
        said = "is missing" if gpus is None else f"is {gpus!r}"
        raise CaseError(f"{place}.gpus {said}: the number of GPUs that the lane uses, 0 or more")
    if name == CPU and gpus:
        raise CaseError(f"{place}.gpus is {gpus}: the lane {CPU} uses no GPU")
    capabilities = _texts(
        f"{place}.capability", entry.get("capability", []), _CAPABILITY, 'capability, as "9.0",'
    )
    if capabilities and not gpus:
        raise CaseError(f"{place}.capability: is a GPU's, and the lane uses none")
    modules = _texts(f"{place}.modules", entry.get("modules", []), _MODULE, "module")
    return Lane(name=name, gpus=gpus, capabilities=capabilities, modules=modules, recorded=recorded)


def _texts(
    place: str, value: Any, pattern: re.Pattern[str] | None = None, what: str = "name"
) -> Sequence[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CaseError(f"{place}: a list of text, not {value!r}")
    for item in value:
        if not item or (pattern is not None and not pattern.fullmatch(item)):
            raise CaseError(f"{place}: {item!r} is no {what}".rstrip(","))
        if value.count(item) > 1:
            raise CaseError(f"{place}: has {item!r} twice")
    return tuple(value)


def _refuse_unknown(place: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            raise CaseError(f"{place}: there is no key {key!r}; keys are {', '.join(known)}")


def _section(path: Path, *keys: str) -> str:
    """Keys as one would write them in a file."""
    return (
        ".".join([*(["tool.golden"] if path.name == PYPROJECT else []), *keys]) or "its top level"
    )


def lane_of(root: Path, name: str) -> Lane:
    """Returns a lane as a checkout declares it.

    Args:
        root: the checkout that is run; an old one may declare nothing.
        name: of the lane. One that is not declared is taken to use a GPU, unless it is `cpu`.

    Returns:
        The lane.
    """
    declared = read_declaration(root)
    known = {} if declared is None else declared.lanes
    return known.get(name) or Lane(name=name, gpus=int(name != CPU))


def search_path(root: Path) -> list[str]:
    """Where modules of a checkout are: its root, and `src/` if it has one."""
    return [str(folder) for folder in (root, root / "src") if folder.is_dir()]


def make_importable(root: Path) -> None:
    """Puts a checkout on this process's module search path, as its runs have it.

    Behind the user's PYTHONPATH, where a judge's own gate may stand, and ahead of what is
    installed. A process serves one checkout: modules that are imported stay.
    """
    real_entries()
    library = sysconfig.get_path("stdlib")
    place = sys.path.index(library) if library in sys.path else 0
    ahead = sys.path[:place]
    sys.path[place:place] = [folder for folder in search_path(root) if folder not in ahead]
