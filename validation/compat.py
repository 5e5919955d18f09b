"""What Python 3.10 lacks."""

from __future__ import annotations

import sys
from collections.abc import Sequence

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


def module_command(module: str, *arguments: str, python: str = sys.executable) -> Sequence[str]:
    """Builds a command that runs a module, without the working directory on its path.

    Args:
        module: its name.
        *arguments: handed to it.
        python: an interpreter of this version.

    Returns:
        The command in words.
    """
    if sys.version_info >= (3, 11):
        return [python, "-P", "-m", module, *arguments]
    code = (
        "import runpy, sys; sys.path.remove(''); "
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    return [python, "-c", code, *arguments]


__all__ = ["StrEnum", "module_command", "tomllib"]
