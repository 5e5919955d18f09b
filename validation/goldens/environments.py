"""Goldens of several environments beside each other, and which of them is nearest to a run.

On a lane with GPUs a golden belongs to an environment: GPU model, image, topology. A run of another
one is compared with the nearest: the same GPU model before any other, then the same image, then the
same topology, then the fewest other differences (driver, versions, settings). Where several are
equally near, the one that was recorded first is taken. On a lane without GPUs a case has one
golden, whose tolerances cover processors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from validation.files import digest, encode_json
from validation.running.environment import VARIABLES

_IDENTITY = ("device", "image", "topology")
# What a GPU's numbers do not depend on.
_HOST = (
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "arithmetic",
    "blas",
    "cpu_family",
    "cpu_isa",
    "cpu_model",
    "cpu_vendor",
    "lane",
    "platform",
    "python",
    "threads",
)


def identity(environment: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a golden's environment from another's; the same of all without a GPU."""
    if environment.get("capability") is None:
        return ()
    return tuple(environment.get(name) for name in _IDENTITY)


def distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[int, ...]:
    """How far apart two environments are, in the order of the module's rule."""
    parts = [int(one.get(name) != other.get(name)) for name in _IDENTITY]
    # A version that only one side records tells nothing; a variable is recorded where it is set.
    known = {*one} & {*other} | {*VARIABLES}
    rest = known - {*_IDENTITY, *_HOST}
    return (*parts, sum(one.get(name) != other.get(name) for name in rest))


def same_stack(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether hardware, driver, versions and settings are equal, as far as they are recorded."""
    return not any(distance(one, other))


def folder_name(environment: Mapping[str, Any]) -> str:
    """The folder of an environment beside the first one's: the GPU's name, and a digest of more."""
    device, *rest = identity(environment)
    slug = re.sub(r"[^a-z0-9]+", "-", str(device).lower()).strip("-")
    return slug if rest == [None, None] else f"{slug}-{digest(encode_json(rest))[:8]}"


def in_words(environment: Mapping[str, Any]) -> str:
    """An environment as a verdict names it; empty without a GPU."""
    return ", ".join(str(part) for part in identity(environment) if part is not None)
