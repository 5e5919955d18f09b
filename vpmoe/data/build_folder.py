"""The folder of a build: who writes there, what an earlier build left, and full disks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vpmoe.data.dataset_files import read_manifest, verify_sizes
from vpmoe.data.errors import DataError
from vpmoe.data.layout import MANIFEST, SPLITS
from vpmoe.data.rows import Position
from vpmoe.files import write_atomically

STATE = ".build.json"
"""The checkpoint of an unfinished build."""


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Takes a folder for one build; the lock goes with the process.

    Args:
        folder: of the build; made if it is missing.

    Yields:
        The lock's descriptor.

    Raises:
        DataError: the folder cannot be made, or another build is writing there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be made or opened: {error.strerror}; give another --output"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise DataError(
            f"{folder}: another build is writing there; wait for it, or give another --output"
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Says of a full or broken disk what to do.

    Args:
        folder: of the build, for messages that name no file.

    Raises:
        DataError: in place of such an OSError; others pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
            raise
        raise DataError(
            f"{error.filename or folder}: {error.strerror}. Nothing unfinished is accepted as a "
            "dataset; make room and run the same command again, it goes on where it stopped"
        ) from error


def existing_dataset(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Reads the manifest of the dataset in a folder.

    Args:
        folder: of the build.
        identity: fields of the manifest that say what is built.

    Returns:
        The manifest, or None where there is no dataset.

    Raises:
        DataError: the dataset is damaged, or of other input or settings.
    """
    if not (folder / MANIFEST).exists():
        return None
    manifest = read_manifest(folder)
    if any(manifest.get(name) != value for name, value in identity.items()):
        raise DataError(
            f"{folder}: holds a dataset of other input or settings; give another --output"
        )
    verify_sizes(folder, manifest)
    discard_temporaries(folder)
    (folder / STATE).unlink(missing_ok=True)
    return manifest


def discard_temporaries(folder: Path) -> None:
    """Removes what a kill in the middle of an atomic write left."""
    for name in (STATE, MANIFEST):
        for path in folder.glob(f".{name}.*"):
            path.unlink()


def load_state(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Reads the last checkpoint of an interrupted build; claims a new build's folder.

    Args:
        folder: of the build.
        identity: fields of the checkpoint that say what is built.

    Returns:
        The checkpoint, or None where there is none.

    Raises:
        DataError: the folder holds other files, another build's checkpoint, or a damaged one.
    """
    path = folder / STATE
    if not path.exists():
        leftovers = [split for split in SPLITS if any((folder / split).glob("*"))]
        if leftovers:
            raise DataError(
                f"{folder / leftovers[0]}: holds files and no manifest; give another --output, or "
                "remove them"
            )
        # From here on the files in the folder are this build's.
        first = {"identity": identity, "file": None}
        write_atomically(path, json.dumps(first).encode())
        return None
    try:
        state: dict[str, Any] = json.loads(path.read_bytes())
        same = state["identity"] == json.loads(json.dumps(identity))
        if state["file"] is not None:
            Position(**state["position"])
            _ = [state[name] for name in ("skipped_empty", "skipped_duplicate", "tokens")]
            _ = [state["splits"][split] for split in SPLITS]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: damaged; remove the folder and build again") from error
    if not same:
        raise DataError(
            f"{folder}: holds an unfinished build of other input or settings; give another "
            "--output, or remove it"
        )
    return state if state["file"] is not None else None
