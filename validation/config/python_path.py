"""Folders on PYTHONPATH, which splits at `os.pathsep`: a checkout may well be at `/data/run:7`.

Such a folder stands there by a link of another name, for every process that is started, whoever
starts it. The process itself puts the folder in the link's place as soon as it can, so that its
modules are where they are (`real_entries`).
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from validation.config.errors import CaseError

_PREFIX = "golden-path-"
# Where links are made if TMPDIR itself has such a path.
_OTHERS = ("/tmp", "/var/tmp")  # noqa: S108 a folder of its own is made there


def python_path(inherited: str | None, folders: Iterable[str]) -> str:
    """A value of PYTHONPATH: what is inherited, then folders.

    Args:
        inherited: a value of PYTHONPATH, or nothing.
        folders: to search after that.

    Returns:
        The value.

    Raises:
        CaseError: a folder cannot be put there, as temporary files are in such a folder, too.
    """
    return os.pathsep.join(filter(None, (inherited, *map(entry, folders))))


@functools.cache
def entry(folder: str) -> str:
    """A folder as PYTHONPATH can hold it.

    Args:
        folder: any.

    Returns:
        The folder itself, or a link to it that lasts until this process ends.

    Raises:
        CaseError: see `python_path`.
    """
    if os.pathsep not in folder:
        return folder
    usable = [
        f for f in (tempfile.gettempdir(), *_OTHERS) if os.pathsep not in f and Path(f).is_dir()
    ]
    if not usable:
        raise CaseError(
            f"{folder}: PYTHONPATH cannot hold a path with {os.pathsep!r}, and a link to it would "
            f"be in {tempfile.gettempdir()}, which has one, too: set TMPDIR to a folder without"
        )
    place = tempfile.mkdtemp(prefix=_PREFIX, dir=usable[0])
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    link = Path(place) / "linked"
    link.symlink_to(Path(folder).resolve(), target_is_directory=True)
    return str(link)


def real_entries() -> None:
    """Puts the folders themselves in place of their links in this process's module search path."""
    sys.path[:] = [_real(place) for place in sys.path]


def _real(place: str) -> str:
    path = Path(place)
    return str(path.readlink()) if _PREFIX in path.parent.name and path.is_symlink() else place
