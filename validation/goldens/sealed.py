"""What decides in a check, and whether it has changed while runs could write to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.machinery import all_suffixes
from pathlib import Path

from validation.files import digest


class Seal:
    """Remembers what folders hold, to find later what has changed.

    Args:
        folders: of goldens; where one does not exist, nothing may appear in it.
        sources: of a judge's checkout. Runs of its own may leave data there, but no module.
    """

    def __init__(self, folders: Iterable[Path], sources: Iterable[Path] = ()) -> None:
        self._folders, self._sources = tuple(folders), tuple(sources)
        self._found = self._digests()

    def broken(self) -> list[Path]:
        """Lists the files that have changed, come or gone since, sorted."""
        now = self._digests()
        return sorted(
            path
            for path in {*now, *self._found}
            if now.get(path) != self._found.get(path)
            and (path in self._found or self._counts(path))
        )

    def _counts(self, new: Path) -> bool:
        """Whether a new file can decide something."""
        inside = any(new.is_relative_to(folder) for folder in self._folders)
        return inside or new.name.endswith((*all_suffixes(), ".pth"))

    def _digests(self) -> Mapping[Path, str]:
        """Digest of each file's content; of a link, its target."""
        found = {}
        for folder in (*self._folders, *self._sources):
            for path in folder.rglob("*"):
                if path.is_symlink():
                    found[path] = f"link to {path.readlink()}"
                elif path.is_file() and "__pycache__" not in path.parts:
                    found[path] = digest(path.read_bytes())
        return found
