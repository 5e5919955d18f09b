"""Invariants: relations between two runs of one check, compared without any golden."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import replace

from validation.cases import Invariant
from validation.compare.compare import Comparison, compare
from validation.compare.shards import held_shards, unequal_copies
from validation.compare.tolerance import Tolerances
from validation.trace import (
    CurveKey,
    Event,
    RecordKind,
    Sketch,
    Trace,
    curve_class,
    event_class,
)


def compare_invariant(invariant: Invariant, reference: Trace, actual: Trace) -> Comparison:
    """Compares a run with the run of the case that its invariant names.

    Only what the invariant names is compared: its metrics at the steps that the run has, on every
    rank that has them, and, if it asks for that, the tensors that both runs traced on the same
    rank; of the tensors that ranks share, each with the reference's, whichever rank has it. A
    rank's metric is compared with the same rank's of the reference, or with that of the
    first rank that has it. A metric of the reference that no rank of the run has is missing, and so
    is a pattern without a metric.

    Args:
        invariant: of the run's case.
        reference: the run of the invariant's reference case.
        actual: the run.

    Returns:
        Divergences in execution order, and an outcome for each compared record.
    """
    classes: dict[str, Mapping[int, float]] = {}
    expected: dict[CurveKey, dict[int, float]] = {}
    measured: dict[CurveKey, Mapping[int, float]] = {}
    steps = {step for series in actual.curves.values() for step in series}
    for pattern, tolerance in invariant.curves.items():
        named = dict.fromkeys(key.metric for key in reference.curves)
        for metric in [m for m in named if fnmatch.fnmatchcase(m, pattern)] or [pattern]:
            theirs = sorted(key for key in reference.curves if key.metric == metric)
            ours = [key for key in actual.curves if key.metric == metric]
            for key in ours or theirs[:1] or [CurveKey(metric)]:
                held_to = key if key in reference.curves or not theirs else theirs[0]
                series = reference.curves.get(held_to, {})
                classes[curve_class(key)] = {0: tolerance}
                measured[key] = actual.curves.get(key, {})
                expected[key] = {s: series[s] for s in sorted(steps) if s in series}
                if not expected[key] and not measured[key]:
                    expected[key] = {0: 0.0}  # a pattern that names no metric
    events: tuple[list[Event], list[Event]] = ([], [])
    if invariant.events is not None:
        traced = {event.key: event for event in actual.events if isinstance(event.value, Sketch)}
        at = {key.step for key in traced} - {0}
        for event in reference.events:
            if event.key.step in at and isinstance(event.value, Sketch):
                events[0].append(event)
                if event.key in traced:
                    events[1].append(traced[event.key])
        for place in traced:
            classes[event_class(place)] = {0: invariant.events}
    shards = held_shards(invariant.shards, reference, actual, {0, *steps})
    events[0].extend(shards.expected)
    events[1].extend(shards.measured)
    classes.update({name: {0: tolerance} for name, tolerance in shards.tolerances.items()})
    phases = {**reference.curve_phases, **actual.curve_phases}
    held = compare(
        replace(reference, events=events[0], curves=expected, curve_phases=phases, tables={}),
        replace(actual, events=events[1], curves=measured, curve_phases=phases, tables={}),
        Tolerances(classes),
    )
    if not invariant.shards:
        return held
    beyond = {divergence.place for divergence in held.divergences}
    copies = [d for d in unequal_copies(invariant.shards, actual) if d.place not in beyond]
    # Stable: of a step, what is not the reference's comes before what ranks disagree about.
    divergences = sorted(
        [*held.divergences, *copies], key=lambda d: (d.step, d.kind is RecordKind.CURVE)
    )
    return replace(held, divergences=divergences)
