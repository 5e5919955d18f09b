"""All contracts, and those that a training relies on."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from vpmoe.megatron.contract import (
    Contract,
    MegatronChangedError,
    check_all,
    installed_version,
)

MODEL = ("model", "attention", "moe", "helpers", "marks", "checkpoint")
TRAINING = ("start", "repairs", "cpu", "tokenizer", "datasets", "optimizer", "transformer_engine")
ELSEWHERE = ("unpickling", "points", "shards")

MODULES = (*TRAINING, *MODEL, *ELSEWHERE)
"""Of this package, those with contracts, in the order of the document."""


def contracts_of(module: str) -> tuple[Contract, ...]:
    """Imports the contracts that a module of this package declares.

    Args:
        module: its name in this package.

    Returns:
        The contracts.

    Raises:
        MegatronChangedError: the module finds Megatron changed as it is imported.
    """
    try:
        found: tuple[Contract, ...] = importlib.import_module(f"vpmoe.megatron.{module}").CONTRACTS
    except ImportError as error:
        raise MegatronChangedError(
            f"megatron-core {installed_version()} changed what vpmoe/megatron/{module}.py imports: "
            f"{error}. Find where this version has it, and import it from there."
        ) from error
    return found


def check_modules(modules: Iterable[str]) -> None:
    """Checks the contracts of some modules; all of them before the first is refused.

    Args:
        modules: names of modules of this package.

    Raises:
        MegatronChangedError: the installed Megatron is another than they rely on.
    """
    problems = []
    for module in modules:
        try:
            check_all(contracts_of(module))
        except MegatronChangedError as error:
            problems.append(str(error))
    if problems:
        raise MegatronChangedError("\n".join(problems))


def check_model() -> None:
    """Checks everything that building a model relies on.

    Raises:
        MegatronChangedError: see `check_modules`.
    """
    check_modules(MODEL)


def check_training() -> None:
    """Checks everything that a training relies on; cases and faults check their points themselves.

    Raises:
        MegatronChangedError: see `check_modules`.
    """
    check_modules((*TRAINING, *MODEL))
