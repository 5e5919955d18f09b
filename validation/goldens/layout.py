"""The files beside a `golden.json`: fixed names, replaced whole by one rename of the head.

The head holds the digest of each. New contents are written under names that hold their digest, then
the head is replaced, then they take their fixed names: whatever a process dies of, the head names
contents that are there. Goldens from before names were fixed have the digest in every name; they
are read as an acceptance that stopped before its last step, and `golden setup` finishes both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from validation.files import DamagedFileError, digest, safe_name, write_atomically
from validation.trace.storage import CURVES, EVENTS, PROJECTION_FILE, TABLES, read_verified

HEAD = "golden.json"
FILES = (CURVES, EVENTS, TABLES, PROJECTION_FILE)


def read_file_of(
    folder: Path, name: str, recorded: Mapping[str, Any], kept: Mapping[Path, bytes] | None = None
) -> tuple[Path, bytes]:
    """Reads a file of a golden, wherever an acceptance has left it.

    Args:
        folder: of the golden.
        name: its fixed name.
        recorded: name -> digest, from the head.
        kept: contents by path, in place of the folder's.

    Returns:
        Where it is, and its content.

    Raises:
        DamagedFileError: it is missing or not what was recorded; its path comes first.
    """
    expected = recorded.get(name)
    staged = folder / staged_name(name, expected)
    there = staged.exists() if kept is None else staged in kept
    path = staged if there else folder / name
    return path, read_verified(path, expected, kept)


def stage(folder: Path, contents: Mapping[str, bytes]) -> dict[str, str]:
    """Writes contents beside what a head names; returns their digests, for the next head."""
    recorded = {name: digest(content) for name, content in contents.items()}
    for name, content in contents.items():
        write_atomically(folder / staged_name(name, recorded[name]), content)
    return recorded


def settle(folder: Path, recorded: Mapping[str, Any]) -> list[str]:
    """Gives a golden's files their fixed names and deletes every other file of the folder.

    Args:
        folder: of the golden, whose head is in place.
        recorded: name -> digest, from that head.

    Returns:
        What was renamed or deleted.

    Raises:
        DamagedFileError: a file of the golden is missing or damaged; nothing was touched.
    """
    for name in FILES:
        read_file_of(folder, name, recorded)
    done = []
    for name in FILES:
        staged = folder / staged_name(name, recorded.get(name))
        if staged.exists():
            staged.replace(folder / name)
            done.append(staged.name)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in (HEAD, *FILES):
            path.unlink()
            done.append(path.name)
    return done


def unsettled(folder: Path, recorded: Mapping[str, Any]) -> list[str]:
    """Files of a golden that have not got their fixed names."""
    names = [staged_name(name, recorded.get(name)) for name in FILES]
    return [name for name in names if (folder / name).exists()]


def staged_name(name: str, content_digest: object) -> str:
    """Returns the name of a file until the head that lists it is in place.

    Args:
        name: of the file once it is in place.
        content_digest: of its content, as the head has it.

    Returns:
        The temporary name.

    Raises:
        DamagedFileError: the head has no digest of it.
    """
    stem, _, ending = name.rpartition(".")
    if not isinstance(content_digest, str) or not safe_name(content_digest):
        raise DamagedFileError(f"{name}: no digest of it is recorded")
    return f"{stem}.{content_digest[:12]}.{ending}"
