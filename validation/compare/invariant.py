"""Invariants: relations between two runs of one check, compared without any golden."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import replace

from validation.cases import Invariant
from validation.compare.compare import Comparison, compare
from validation.compare.tolerance import Tolerances, curve_class, event_class
from validation.trace import Event, Sketch, Trace


def compare_invariant(invariant: Invariant, reference: Trace, actual: Trace) -> Comparison:
    """Compares a run with the run of the case that its invariant names.

    Only what the invariant names is compared: its metrics at the steps that the run has, on every
    rank that has them, and, if it asks for that, the tensors that both runs traced on the same
    rank. A metric of the reference that no rank of the run has is missing, and so is a pattern
    without a metric.

    Args:
        invariant: of the run's case.
        reference: the run of the invariant's reference case.
        actual: the run.
    """
    classes: dict[str, Mapping[int, float]] = {}
    expected: dict[str, dict[int, float]] = {}
    measured: dict[str, Mapping[int, float]] = {}
    steps = {step for series in actual.curves.values() for step in series}
    for pattern, tolerance in invariant.curves.items():
        known = [m for m in reference.curves if fnmatch.fnmatchcase(m, pattern)]
        for metric in known or [pattern]:
            series = reference.curves.get(metric, {})
            named = [m for m in actual.curves if base_metric(m) == metric] or [metric]
            for name in named:
                classes[curve_class(name)] = {0: tolerance}
                measured[name] = actual.curves.get(name, {})
                expected[name] = {s: series[s] for s in sorted(steps) if s in series}
                if not expected[name] and not measured[name]:
                    expected[name] = {0: 0.0}  # a pattern that names no metric
    events: tuple[list[Event], list[Event]] = ([], [])
    if invariant.events is not None:
        ours = {event.key: event for event in actual.events if isinstance(event.value, Sketch)}
        traced = {key.step for key in ours} - {0}
        for event in reference.events:
            if event.key.step in traced and isinstance(event.value, Sketch):
                events[0].append(event)
                if event.key in ours:
                    events[1].append(ours[event.key])
        for key in ours:
            classes[event_class(key)] = {0: invariant.events}
    phases = {**reference.curve_phases, **actual.curve_phases}
    return compare(
        replace(reference, events=events[0], curves=expected, curve_phases=phases, tables={}),
        replace(actual, events=events[1], curves=measured, curve_phases=phases, tables={}),
        Tolerances(classes),
    )


def base_metric(metric: str) -> str:
    """The metric without the `@rank` of another rank than the first."""
    name, at, rank = metric.rpartition("@")
    return name if at and rank.isdigit() else metric
