"""In which part a declared case differs from the one that a trace was recorded of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from validation.cases.base import Case
from validation.files import encode_json

_PARTS = ("settings", "processes", "traced_steps", "arithmetic", "law")


def what_differs(case: Case, provenance: Mapping[str, Any]) -> str:
    """`: its settings differ (flags)`, as far as the provenance of a trace tells."""
    now = json.loads(encode_json(case.declared))
    # A trace of before the other parts were recorded has its settings alone.
    parts = _PARTS if "processes" in provenance else _PARTS[:1]
    differing = [part for part in parts if now.get(part) != provenance.get(part)]
    if not differing:
        return "" if len(parts) > 1 else f": its settings are the same, {_others()} may differ"
    return ": " + "; ".join(_told(part, provenance.get(part), now.get(part)) for part in differing)


def _others() -> str:
    return " or ".join(part.replace("_", " ") for part in _PARTS[1:])


def _told(part: str, before: Any, now: Any) -> str:
    """A part, with the names of what in it differs."""
    text = f"its {part.replace('_', ' ')} {'differ' if part.endswith('s') else 'differs'}"
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return text
    keys = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    return f"{text} ({', '.join(keys)})"
