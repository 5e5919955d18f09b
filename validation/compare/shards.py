"""Tensors that the ranks of a run share among them, held to the whole ones of another run.

A tensor is known by its step, micro-batch, phase, module, name and occurrence, whichever rank has
it: an adapter gives each rank's part the name of that part of the whole tensor.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from validation.compare.compare import compare
from validation.compare.divergence import Divergence
from validation.trace import Event, Key, Sketch, Trace, event_class


@dataclass(frozen=True)
class HeldShards:
    """What is to be compared.

    Attributes:
        expected: tensors of the reference, on each rank of the run that has them.
        measured: tensors of the run.
        tolerances: by class.
    """

    expected: list[Event] = field(default_factory=list)
    measured: list[Event] = field(default_factory=list)
    tolerances: dict[str, float] = field(default_factory=dict)


def held_shards(
    patterns: Mapping[str, float], reference: Trace, actual: Trace, steps: set[int]
) -> HeldShards:
    """Finds the reference's tensor of each of the run's.

    Args:
        patterns: of `Invariant.shards`.
        reference: the run of the invariant's reference case.
        actual: the run.
        steps: at which the reference's tensors must be in the run.

    Returns:
        Pairs, and what only one of the two has: a tensor of the reference that no rank has, one of
        the run that the reference has not, a pattern that fits nothing.
    """
    held = HeldShards()
    whole = {_anywhere(event.key): event for event in _tensors(reference, patterns)}
    found = set()
    for event in _tensors(actual, patterns):
        place = _anywhere(event.key)
        held.measured.append(event)
        if place in whole:
            found.add(place)
            held.expected.append(replace(whole[place], key=event.key))
    held.expected.extend(
        event for place, event in whole.items() if place not in found and place.step in steps
    )
    for pattern in patterns:
        if not any(_pattern(event.key, [pattern]) for event in whole.values()):
            nothing = Key(0, 0, "init", pattern, "")
            held.expected.append(Event(nothing, f"tensors of {reference.case}"))
    for event in (*held.expected, *held.measured):
        fitting = _pattern(event.key, patterns)
        if fitting is not None:
            held.tolerances[event_class(event.key)] = patterns[fitting]
    return held


def unequal_copies(patterns: Mapping[str, float], actual: Trace) -> list[Divergence]:
    """Tensors whose bits are not those of the first rank that has the same one.

    Args:
        patterns: of `Invariant.shards`.
        actual: the run.

    Returns:
        Divergences of the later ranks, in execution order.
    """
    first: dict[Key, Event] = {}
    pairs: list[tuple[Event, Event]] = []
    for event in sorted(_tensors(actual, patterns), key=lambda event: event.key.rank):
        one = first.setdefault(_anywhere(event.key), event)
        if one is not event:
            pairs.append((one, event))
    owner = {other.key: one.key.rank for one, other in pairs}
    found = compare(
        replace(
            actual,
            events=[replace(one, key=other.key) for one, other in pairs],
            curves={},
            tables={},
        ),
        replace(actual, events=[other for _, other in pairs], curves={}, tables={}),
    )
    by_name: dict[tuple[object, ...], int] = {
        (k.step, k.phase, k.module, k.tensor, k.rank): rank for k, rank in owner.items()
    }
    return [
        replace(d, expected=f"{d.expected}, as rank {by_name[_name(d)]} has it")
        for d in found.divergences
    ]


def _name(divergence: Divergence) -> tuple[object, ...]:
    d = divergence
    return d.step, d.phase, d.module, d.tensor, d.rank


def _tensors(trace: Trace, patterns: Mapping[str, float]) -> list[Event]:
    return [
        event
        for event in trace.events
        if isinstance(event.value, Sketch) and _pattern(event.key, patterns) is not None
    ]


def _pattern(key: Key, patterns: Mapping[str, float] | Sequence[str]) -> str | None:
    """The first pattern that a tensor fits."""
    name = f"{key.phase}:{key.module}.{key.tensor}"
    return next((p for p in patterns if fnmatch.fnmatchcase(name, p)), None)


def _anywhere(key: Key) -> Key:
    """The tensor's key, whichever rank has it."""
    return replace(key, rank=0)
