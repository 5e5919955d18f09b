"""Flags and preset fields that no case varies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from validation.cases import Case, CaseError, Field, Gated
from validation.files import jsonable
from validation.running.worker import resolve


def never_varied(gated: Gated | None, cases: Sequence[Case]) -> dict[str, Any]:
    """Fields that no case sets to anything but their default, or all cases to one other value.

    Args:
        gated: what the repository says of itself; None where it says nothing.
        cases: of the lane.

    Returns:
        Name -> `default`, `value` (the one that every case runs with, None where none has it), and
        `reason` where the repository gives one.

    Raises:
        CaseError: there is no such function, it does not return what it should, or a reason is
            given for a field that it does not have.
    """
    if gated is None or gated.fields is None:
        return {}
    place = f"GATED.fields {gated.fields}"
    try:
        fields = resolve(gated.fields)(cases)
    except (ImportError, AttributeError) as error:
        raise CaseError(f"{place}: cannot be called: {error}") from error
    if not isinstance(fields, Mapping) or not all(isinstance(f, Field) for f in fields.values()):
        raise CaseError(f"{place}: returns name -> validation.Field, not {type(fields).__name__}")
    unknown = sorted(gated.unvaried.keys() - fields.keys())
    if unknown:
        raise CaseError(
            f"GATED.unvaried: {place} has no field {unknown[0]!r}; correct its name, or delete it"
        )
    found = {}
    for name, field in sorted(fields.items()):
        values = {json.dumps(jsonable(value), sort_keys=True) for value in field.values.values()}
        if len(values) <= 1:
            value = json.loads(values.pop()) if values else None
            found[name] = {"default": jsonable(field.default), "value": value}
            if name in gated.unvaried:
                found[name]["reason"] = gated.unvaried[name]
    return found
