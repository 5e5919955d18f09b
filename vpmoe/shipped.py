"""The presets and sample conversations that come with vpMoE, under their names in the repository.

`configs/vpmoe-tiny.toml` is the file of that name where there is one. Where there is none, as
outside of a checkout, it is the one that the installed package carries.
"""

from __future__ import annotations

from pathlib import Path

# The wheel carries the files inside of the package; a checkout has them beside it.
_PACKAGE = Path(__file__).resolve().parent
_ROOM = _PACKAGE / "shipped" if (_PACKAGE / "shipped").is_dir() else _PACKAGE.parent
_PATTERNS = ("configs/*.toml", "data/sample/conversations.jsonl")


def shipped(path: Path | str) -> Path:
    """The file of this name, or where nothing is there the one that vpMoE ships under it."""
    wanted = Path(path)
    if wanted.exists() or wanted.as_posix() not in shipped_names():
        return wanted
    return _ROOM / wanted


def shipped_names() -> list[str]:
    """The names of all that vpMoE ships."""
    found = (path for pattern in _PATTERNS for path in _ROOM.glob(pattern))
    return sorted(path.relative_to(_ROOM).as_posix() for path in found)
