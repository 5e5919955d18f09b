"""Puts a worker's process into the arithmetic of its job."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def arithmetic(kind: str, rounding_seed: int | None = None) -> Iterator[None]:
    """Everything that torch computes inside is computed in this arithmetic.

    Args:
        kind: `native` leaves torch alone; `wide` computes in fp64 and rounds once.
        rounding_seed: every rounded result is moved by up to one unit in the last place, as another
            machine or other code might have rounded it; None moves nothing.
    """
    with contextlib.ExitStack() as stack:
        if kind == "wide":
            stack.enter_context(_wide())
        yield


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    import torch

    from validation.arithmetic.everywhere import everywhere
    from validation.arithmetic.wide import Wide

    # oneDNN's kernels have no fp64 form, and torch chooses them before a mode can tell it so.
    # torch.backends.mkldnn.flags() would do, but touches, and warns of, an Intel GPU's settings.
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with everywhere(Wide):
            yield
    finally:
        torch._C._set_mkldnn_enabled(before)
