"""Proves in every check that the comparison is not blind, by edits of a golden's own trace.

A planted bug proves the comparison of the kind of record that it moves. A misspelt name or a
tolerance without end may blind the gate to another kind, so each kind that a golden has is edited
in turn, grossly, and must be found; and what was compared must be what both traces hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from validation.compare import Comparison, Tolerances
from validation.goldens import Golden
from validation.trace import Event, Sketch, Trace

# So many times too large that no tolerance of any use lets it pass.
_GROSS = 1e3


def shared_records(golden: Trace, actual: Trace) -> int:
    """How many records both traces have: what a comparison must have compared."""
    events = {event.key for event in golden.events} & {event.key for event in actual.events}
    values = sum(
        len(series.keys() & actual.curves.get(key, {}).keys())
        for key, series in golden.curves.items()
    )
    return len(events) + values + len(golden.tables.keys() & actual.tables.keys())


def unseen_edit(
    golden: Golden, compare: Callable[[Trace, Trace, Tolerances], Comparison]
) -> str | None:
    """Makes gross edits in a golden's own trace, and asks whether the comparison finds each.

    Args:
        golden: trace and tolerances.
        compare: the comparison that is to prove itself.

    Returns:
        Name of the first edit that it does not find, or None.
    """
    for name, trace in _edited(golden.trace):
        if not compare(golden.trace, trace, golden.tolerances).divergences:
            return name
    return None


def _edited(trace: Trace) -> Iterator[tuple[str, Trace]]:
    """What was done, and the trace that it was done to, for each kind of record."""
    for key, series in list(trace.curves.items())[:1]:
        step, value = next(iter(series.items()))
        for what, wrong in (("a wrong value", _GROSS * (abs(value) + 1.0)), ("a NaN", math.nan)):
            curves = {**trace.curves, key: {**series, step: wrong}}
            yield f"{what} of {key} at step {step}", replace(trace, curves=curves)
        curves = {other: kept for other, kept in trace.curves.items() if other != key}
        yield f"the loss of {key}", replace(trace, curves=curves)
    for floating in (True, False):
        for place, event in enumerate(trace.events):
            if event.floating is floating and _editable(event):
                events = [*trace.events]
                events[place] = replace(event, value=_edited_value(event.value))
                name = f"a wrong {event.key.module}.{event.key.tensor}"
                yield name, replace(trace, events=events)
                break
    for table, rows in list(trace.tables.items())[:1]:
        tables = {**trace.tables, table: [*rows, ["edited"]]}
        yield f"a wrong table {table}", replace(trace, tables=tables)


def _editable(event: Event) -> bool:
    return not isinstance(event.value, Sketch) or 0.0 < event.value.norm < math.inf


def _edited_value(value: object) -> object:
    if not isinstance(value, Sketch):
        return {"edited": True}
    return replace(
        value,
        norm=_GROSS * value.norm,
        mean=_GROSS * value.mean,
        abs_max=_GROSS * value.abs_max,
        digest="edited",
        projections=tuple(_GROSS * projection for projection in value.projections),
    )
