"""Puts a worker's process into the arithmetic of its job."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

from validation.arithmetic.counts import Arithmetic


@contextlib.contextmanager
def arithmetic(kind: str, rounding_seed: int | None = None) -> Iterator[Arithmetic]:
    """Everything that torch computes inside is computed in this arithmetic; yields its counts.

    Args:
        kind: `native` leaves torch alone; `wide` computes in fp64 and rounds once.
        rounding_seed: every rounded result is moved by up to one unit in the last place, as another
            machine or other code might have rounded it; None moves nothing. Nor does anything where
            there is no torch.
    """
    counts = Arithmetic()
    with contextlib.ExitStack() as stack:
        if kind != "native":
            raise NotImplementedError(f"arithmetic {kind}")
        if rounding_seed is not None and importlib.util.find_spec("torch") is not None:
            import torch

            from validation.arithmetic.rounding import RandomRounding

            # oneDNN's kernels have no fp64 form, and torch chooses them above a mode.
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(RandomRounding(rounding_seed, counts))
        yield counts
