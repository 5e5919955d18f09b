"""Files and folders that are whole or absent."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, sees the old or the new content whole.

    Args:
        path: the file; its folder is made if it is missing.
        content: all of it.

    Raises:
        OSError: the folder cannot be made or written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk is told by the file that it had no room for
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, put in its place whole when the block ends, and removed if it fails.

    Args:
        folder: its place; must not exist.

    Yields:
        Where to write meanwhile: beside it, on the same file system.

    Raises:
        FileExistsError: something is there already.
        OSError: the place cannot be written.
    """
    if folder.exists() or folder.is_symlink():
        raise FileExistsError(f"{folder}: exists already; give a folder that does not")
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield place
        for path in (*place.rglob("*"), place):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())
            _synchronise(path)
        # Onto a folder that came meanwhile, this fails unless it is empty.
        place.rename(folder)
        _synchronise(folder.parent)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
