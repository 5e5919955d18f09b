"""What Python 3.10 lacks."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    from enum import StrEnum

    import tomllib
else:
    from enum import Enum

    import tomli as tomllib

    class StrEnum(str, Enum):
        """An enumeration whose members are text."""

        __str__ = str.__str__
        __format__ = str.__format__


__all__ = ["StrEnum", "tomllib"]
