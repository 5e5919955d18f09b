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
    if kind != "native" or rounding_seed is not None:
        raise NotImplementedError(f"arithmetic {kind}, rounding seed {rounding_seed}")
    yield
