"""Flags and preset fields that no case varies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from validation.cases import Case, CaseError, Field
from validation.files import jsonable
from validation.running.worker import resolve


def never_varied(function: str | None, cases: Sequence[Case]) -> dict[str, Any]:
    """Fields that no case sets to anything but their default, or all cases to one other value.

    Args:
        function: the repository's own, see `validation.cases.Gated`; None where it has no fields.
        cases: of the lane.

    Returns:
        Name -> `default`, and `value`: the one that every case runs with, None where none has it.

    Raises:
        CaseError: there is no such function, or it does not return what it should.
    """
    if function is None:
        return {}
    place = f"GATED.fields {function}"
    try:
        fields = resolve(function)(cases)
    except (ImportError, AttributeError) as error:
        raise CaseError(f"{place}: cannot be called: {error}") from error
    if not isinstance(fields, Mapping) or not all(isinstance(f, Field) for f in fields.values()):
        raise CaseError(f"{place}: returns name -> validation.Field, not {type(fields).__name__}")
    found = {}
    for name, field in sorted(fields.items()):
        values = {json.dumps(jsonable(value), sort_keys=True) for value in field.values.values()}
        if len(values) <= 1:
            value = json.loads(values.pop()) if values else None
            found[name] = {"default": jsonable(field.default), "value": value}
    return found
