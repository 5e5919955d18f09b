"""Replacing an attribute for a while, and the one repair that Megatron needs on every lane."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

_MISSING = object()


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets `owner.name` to `value` and puts the former attribute back on leaving."""
    before = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextlib.contextmanager
def skip_helper_build() -> Iterator[None]:
    """Keeps Megatron from running `make` in site-packages.

    megatron-core's wheel ships the compiled `helpers_cpp` but no Makefile, and
    `_compile_dependencies` exits the process when make fails.
    """
    import megatron.core.datasets.utils as dataset_utils

    with replaced(dataset_utils, "compile_helpers", lambda: None):
        yield
