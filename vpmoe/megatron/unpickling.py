"""What Megatron lets a restricted unpickler name."""

from __future__ import annotations

from typing import Any

from vpmoe.megatron.contract import Contract, Exists

SAFE_CLASSES = Contract(
    "classes in a checkpoint",
    "`vpmoe export` reads a checkpoint's arguments with torch's restricted unpickler, which lets "
    "in what Megatron lists as safe.",
    "See how `megatron.core.safe_globals` of this version lists classes.",
    (Exists("megatron.core.safe_globals:SAFE_GLOBALS"),),
)

CONTRACTS = (SAFE_CLASSES,)


def safe_classes() -> list[Any]:
    """The classes and functions that Megatron lists as safe in its checkpoints."""
    found: list[Any] = SAFE_CLASSES.take("SAFE_GLOBALS")
    return found
