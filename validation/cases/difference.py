"""In which part a declared case differs from the one that a trace was recorded of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from validation.cases.base import Case
from validation.files import encode_json

_PARTS = {
    "settings": "settings",
    "processes": "processes",
    "traced_steps": "traced steps",
    "arithmetic": "arithmetic",
    "law": "invariant",
}
"""Key of a declared part, and of a trace's provenance -> its name."""
_OLD_PARTS = ("settings",)


def what_differs(case: Case, provenance: Mapping[str, Any]) -> str:
    """`: its settings differ (flags)`, as far as the provenance of a trace tells."""
    now = json.loads(encode_json(case.declared))
    # A trace of before the other parts were recorded has its settings alone.
    parts = list(_PARTS if "processes" in provenance else _OLD_PARTS)
    differing = [part for part in parts if now.get(part) != provenance.get(part)]
    if not differing:
        return "" if len(parts) > 1 else f": its settings are the same, {_others()} may differ"
    return ": " + "; ".join(_told(part, provenance.get(part), now.get(part)) for part in differing)


def _others() -> str:
    return " or ".join(name for part, name in _PARTS.items() if part not in _OLD_PARTS)


def _told(part: str, before: Any, now: Any) -> str:
    """A part, with the names of what in it differs."""
    text = f"its {_PARTS[part]} {'differ' if part.endswith('s') else 'differs'}"
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return text
    keys = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    return f"{text} ({', '.join(keys)})"
