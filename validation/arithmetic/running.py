"""Puts a worker's process into the arithmetic of its job."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

from validation.arithmetic.counts import Arithmetic


@contextlib.contextmanager
def arithmetic(kind: str, rounding_seed: int | None = None) -> Iterator[Arithmetic]:
    """Has torch compute everything inside of the context in this arithmetic.

    Args:
        kind: `native` leaves torch alone; `wide` computes in fp64 and rounds once.
        rounding_seed: every rounded result is moved by up to one unit in the last place, as another
            machine or other code might have rounded it; None moves nothing. Nor does anything where
            there is no torch.

    Yields:
        Counts of what was intercepted.
    """
    counts = Arithmetic()
    with contextlib.ExitStack() as stack:
        if kind == "wide" or (
            rounding_seed is not None and importlib.util.find_spec("torch") is not None
        ):
            stack.enter_context(_without_onednn())
        if kind == "wide":
            from validation.arithmetic.everywhere import everywhere
            from validation.arithmetic.wide import Wide

            stack.enter_context(everywhere(Wide))
        if rounding_seed is not None and importlib.util.find_spec("torch") is not None:
            from validation.arithmetic.rounding import RandomRounding

            stack.enter_context(RandomRounding(rounding_seed, counts))
        yield counts


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    """Its kernels have no fp64 form, and torch chooses them before a mode can tell it so."""
    import torch

    # torch.backends.mkldnn.flags() would do, but touches, and warns of, an Intel GPU's settings.
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)
