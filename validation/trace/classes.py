"""Classes of records: a class pools records that behave alike, and share a tolerance.

Numbers in a name become `#`, so that the layers, and the experts, of one kind are one class.
"""

from __future__ import annotations

import re

from validation.trace.model import CurveKey, Key

CURVE = "curve:"
"""With what the classes of curves begin."""

_NUMBER = re.compile(r"\d+")
_LIKE_RANK = re.compile(r".*@\d+", re.DOTALL)


def curve_class(key: CurveKey) -> str:
    """The class of a curve's values: ranks but the first share one of their own, with `@#`.

    A metric that is itself called like `pass@1` has `@0` behind it on the first rank, and so is
    never in the class of the other ranks' `pass`.
    """
    rank = "@#" if key.rank else "@0" if _LIKE_RANK.fullmatch(key.metric) else ""
    return f"{CURVE}{_NUMBER.sub('#', key.metric)}{rank}"


def event_class(key: Key) -> str:
    """The class of a tensor's sketches."""
    return f"{key.phase}:{_NUMBER.sub('#', f'{key.module}.{key.tensor}')}"
