"""Replacing an attribute for a while."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

_MISSING = object()

# The replacements in force, by owner and name, the first one first: (what was there, what is).
_in_force: defaultdict[tuple[int, str], list[tuple[Any, Any]]] = defaultdict(list)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets `owner.name` to `value` and puts the former attribute back on leaving."""
    before = vars(owner).get(name, _MISSING)
    place = (id(owner), name)
    _in_force[place].append((getattr(owner, name, None), value))
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
        _in_force[place].pop()
        if not _in_force[place]:
            del _in_force[place]


def original(owner: Any, name: str, found: Any) -> Any:
    """What stood at `owner.name` before `replaced` put `found` there; `found` if it did not."""
    places = _in_force.get((id(owner), name))
    return places[0][0] if places and places[-1][1] is found else found
