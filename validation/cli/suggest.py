"""Words messages about unknown names: the names that are near, or all there are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# A longer list hides its message; the nearest names are enough then.
_SHOWN = 24
_NEAREST = 3
_SHORT = 3


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """The known names that somebody who wrote `word` may have meant, the likeliest first."""
    plain = {name.lower().replace("-", "_"): name for name in known}
    wanted = word.lower().replace("-", "_")
    # Of a short word a letter is much: `gpu` is no slip of the pen for `cpu`, `cpo` is.
    alike = [p for p in plain if len(wanted) > _SHORT or p[:1] == wanted[:1]]
    close = difflib.get_close_matches(wanted, alike, _NEAREST)
    parts = [p for p in plain if len(wanted) >= _SHORT and wanted in p and p not in close]
    return [plain[name] for name in (*close, *parts)][:_NEAREST]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean A or B? `, to stand before what there is; empty where no name is near."""
    found = nearest(word, known)
    return f"did you mean {' or '.join(found)}? " if found else ""


def unknown(kind: str, word: str, known: Iterable[str]) -> str:
    """Words a message about an unknown name: what it may have meant, and what there is.

    Args:
        kind: what it should be the name of, in the singular.
        word: what was written.
        known: every name there is, in the order to show them.

    Returns:
        `there is no KIND 'WORD'; ...`, in one line.
    """
    names = list(known)
    hint = did_you_mean(word, names)
    if not hint or len(names) <= _SHOWN:
        hint += f"{kind}s: {', '.join(names) or 'none'}"
    return f"there is no {kind} {word!r}; {hint.rstrip()}"
