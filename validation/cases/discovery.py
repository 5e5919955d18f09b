"""Finds what a repository declares: the modules that `[tool.golden]` names, and what they hold."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from validation.cases.base import Benign, Case, Fault
from validation.cases.gated import Gated
from validation.config import CaseError, Declaration, Lane, declaration_of, make_importable

_GROUPS = {"cases": "validation.cases", "faults": "validation.faults"}


def discover_cases(root: Path, declared: Declaration | None = None) -> dict[str, Case]:
    """Imports every case of a repository.

    Args:
        root: the checkout whose modules are imported.
        declared: what names them; default: the checkout's own declaration.

    Returns:
        Name -> case.

    Raises:
        CaseError: no declaration, or a wrong one; a module that cannot be imported or has no
            `CASES`; a name twice; a lane that is not declared.
    """
    return {case.name: case for case in _discover(root, declared, "cases", "CASES", Case, "name")}


def discover_faults(root: Path, declared: Declaration | None = None) -> dict[str, Fault]:
    """Every fault of a repository, by id; arguments and errors as `discover_cases`."""
    found = _discover(root, declared, "faults", "FAULTS", Fault, "id")
    return {fault.id: fault for fault in found}


def discover_benign(root: Path, declared: Declaration | None = None) -> dict[str, Benign]:
    """Every benign change, by id: `BENIGN` of the modules that offer faults, if they have it.

    Arguments and errors as `discover_cases`.
    """
    found = _discover(root, declared, "faults", "BENIGN", Benign, "id", optional=True)
    return {change.id: change for change in found}


def discover_throughput_faults(root: Path, declared: Declaration | None = None) -> dict[str, Fault]:
    """Every planted slowdown, by id: `THROUGHPUT_FAULTS` of the modules that offer faults.

    They change no number that a golden holds, so neither the kill matrix nor the canary has them.
    Arguments and errors as `discover_cases`.
    """
    found = _discover(root, declared, "faults", "THROUGHPUT_FAULTS", Fault, "id", optional=True)
    return {fault.id: fault for fault in found}


def discover_gated(root: Path, declared: Declaration | None = None) -> Gated | None:
    """What the cases gate: `GATED` of the module that offers them.

    Args:
        root: the checkout whose modules are imported.
        declared: what names them; default: the checkout's own declaration.

    Returns:
        What that module declares; None where no module has `GATED`.

    Raises:
        CaseError: as `discover_cases`, or two modules say so.
    """
    declared = declared or declaration_of(root)
    make_importable(root)
    found: Gated | None = None
    for module in _modules(root, declared, "cases"):
        gated = getattr(module, "GATED", None)
        if gated is None:
            continue
        place = f"{declared.key('cases')}: {module.__name__}"
        if not isinstance(gated, Gated):
            raise CaseError(f"{place}: GATED is a validation.Gated, not {gated!r}")
        if found is not None:
            raise CaseError(f"{place}: GATED is declared by another module already")
        found = gated
    return found


def lanes_with_cases(root: Path, declared: Declaration | None = None) -> Mapping[str, Lane]:
    """The lanes of a repository on which some case runs; arguments as `discover_cases`."""
    declared = declared or declaration_of(root)
    used = {lane for case in discover_cases(root, declared).values() for lane in case.lanes}
    return {name: lane for name, lane in declared.lanes.items() if name in used}


def _discover(
    root: Path,
    declared: Declaration | None,
    key: str,
    attribute: str,
    kind: type,
    name: str,
    *,
    optional: bool = False,
) -> Sequence[Any]:
    declared = declared or declaration_of(root)
    make_importable(root)
    found: dict[str, Any] = {}
    for module in _modules(root, declared, key):
        place = f"{declared.key(key)}: {module.__name__}"
        items = getattr(module, attribute, () if optional else None)
        if not isinstance(items, Sequence) or not all(isinstance(item, kind) for item in items):
            raise CaseError(f"{place}: has no {attribute}, a sequence of {kind.__name__}")
        for item in items:
            called = getattr(item, name)
            if called in found:
                raise CaseError(f"{place}: {kind.__name__.lower()} {called!r} exists already")
            _refuse_unknown_lanes(module.__name__, called, item, declared)
            found[called] = item
    return list(found.values())


def _modules(root: Path, declared: Declaration, key: str) -> Iterator[ModuleType]:
    """The declared modules, then those of the packages that are named."""
    for name in getattr(declared, key):
        try:
            yield importlib.import_module(name)
        except Exception as error:  # whatever a module of the repository can raise
            missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(
                f"{error.name}."
            )
            why = f"there is no such module in {root}" if missing else _in_words(error)
            raise CaseError(
                f"{declared.key(key)}: {name!r} cannot be imported: {why}; name a module as "
                f"`python -c 'import {name}'` finds it in {root}"
            ) from error
    for name in declared.packages:
        offered = [p for group in _GROUPS.values() for p in entry_points(group=group, name=name)]
        if not offered:
            names = {p.name for group in _GROUPS.values() for p in entry_points(group=group)}
            known = ", ".join(sorted(names)) or "none"
            raise CaseError(
                f"{declared.key('packages')}: no installed package has an entry point {name!r} of "
                f"{' or '.join(_GROUPS.values())}; there are: {known}"
            )
        for point in offered:
            if point.group != _GROUPS[key]:
                continue
            try:
                yield point.load()
            except Exception as error:  # whatever an installed module can raise
                raise CaseError(
                    f"{declared.key('packages')}: {name}: {point.value} cannot be imported: "
                    f"{_in_words(error)}"
                ) from error


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _refuse_unknown_lanes(module: str, called: str, item: Any, declared: Declaration) -> None:
    for lane in (*item.lanes, *getattr(item, "case_on", ())):
        if lane not in declared.lanes:
            raise CaseError(
                f"{module}: {type(item).__name__.lower()} {called}: lane {lane!r} is not declared; "
                f"lanes are {', '.join(declared.lanes)}; declare it with gpus = NUMBER under "
                f"[{declared.section('lanes', lane)}] in {declared.file}"
            )
