"""Goldens as they were when a check began, whatever its runs do to the files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from validation.files import digest


class Seal:
    """Remembers what folders hold, to find later what has changed.

    Args:
        folders: those that exist are read whole.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = tuple(folders)
        self._found = self._digests()

    def broken(self) -> list[Path]:
        """Files that have changed, come or gone since, sorted."""
        now = self._digests()
        return sorted(
            path for path in {*now, *self._found} if now.get(path) != self._found.get(path)
        )

    def _digests(self) -> dict[Path, str]:
        """Digest of each file's content; of a link, its target."""
        found = {}
        for folder in self.folders:
            for path in folder.rglob("*"):
                if path.is_symlink():
                    found[path] = f"link to {path.readlink()}"
                elif path.is_file() and "__pycache__" not in path.parts:
                    found[path] = digest(path.read_bytes())
        return found
