"""How long run folders are kept: `[tool.golden.runs]`.

[tool.golden.runs]
keep = 20       # the newest, however old they are
days = 30       # and whatever is not older
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_KEYS = ("keep", "days")
_MOST = 36500


@dataclass(frozen=True)
class Retention:
    """What `golden prune` leaves.

    Attributes:
        keep: how many run folders stay, the newest; at least one.
        days: run folders that are not older stay, too.
    """

    keep: int = 20
    days: int = 30


def parse_retention(value: Any) -> Retention:
    """The retention of a declaration; what it does not say is as everywhere.

    Args:
        value: what stands under `runs`.

    Returns:
        The retention.

    Raises:
        ValueError: it is not as this module says.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"a table with {' and '.join(_KEYS)}, not {value!r}")
    for key, number in value.items():
        if key not in _KEYS:
            raise ValueError(f"there is no key {key!r}; keys are {', '.join(_KEYS)}")
        least = 1 if key == "keep" else 0
        whole = isinstance(number, int) and not isinstance(number, bool)
        if not whole or not least <= number <= _MOST:
            raise ValueError(f"{key} is a whole number from {least} to {_MOST}, not {number!r}")
    return Retention(**value)
