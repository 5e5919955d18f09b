"""What a run notes beside its records, for calibration: grains, and what its arithmetic counted.

A grain is how far a value may move because the numbers that it is made of were rounded when they
were stored: relative, by tolerance class and step. Nothing here is compared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from validation.trace.model import Trace
from validation.trace.sketch import Sketch

GRAIN, ARITHMETIC = "grain", "arithmetic"

Grains = Mapping[str, Mapping[int, float]]
"""Class -> step -> grain."""


def grains_of(traces: Sequence[Trace]) -> Grains:
    """The largest grain of each class and step."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for trace in traces:
        for name, steps in _notes(trace).get(GRAIN, {}).items():
            for step, value in steps.items():
                known = found[name]
                known[int(step)] = max(known.get(int(step), 0.0), float(value))
    return found


def longest_sum_of(traces: Sequence[Trace]) -> int:
    """Terms of the longest sum in these runs.

    Where no arithmetic has counted them, the numbers of the largest tensor that was recorded: no
    sum over recorded numbers is longer.
    """
    counted = max((int(_counts(trace).get("largest_sum", 0)) for trace in traces), default=0)
    if counted:
        return counted
    sizes = (
        math.prod(event.value.shape)
        for trace in traces
        for event in trace.events
        if isinstance(event.value, Sketch)
    )
    return max(sizes, default=1)


def shaken(trace: Trace) -> int:
    """Operations that random rounding has moved in a run."""
    return int(_counts(trace).get("shaken", 0))


def merged(ranks: Sequence[Trace]) -> Mapping[str, Any]:
    """The provenance of several ranks' trace: the first one's, with the notes above of all."""
    notes = dict(_notes(ranks[0]))
    counts = [_counts(trace) for trace in ranks]
    if any(counts):
        largest = max(int(count.get("largest_sum", 0)) for count in counts)
        notes[ARITHMETIC] = {"largest_sum": largest, "shaken": sum(map(shaken, ranks))}
    grains: dict[str, dict[str, float]] = defaultdict(dict)
    for trace in ranks:
        for name, steps in _notes(trace).get(GRAIN, {}).items():
            for step, value in steps.items():
                grains[name][step] = max(grains[name].get(step, 0.0), value)
    if grains:
        notes[GRAIN] = dict(grains)
    return {**ranks[0].provenance, "notes": notes} if notes else ranks[0].provenance


def _notes(trace: Trace) -> Mapping[str, Any]:
    notes = trace.provenance.get("notes")
    return notes if isinstance(notes, Mapping) else {}


def _counts(trace: Trace) -> Mapping[str, Any]:
    counts = _notes(trace).get(ARITHMETIC)
    return counts if isinstance(counts, Mapping) else {}
