"""No edit of a trace goes unnoticed: dropped, added, renamed, changed or NaN records never pass."""

import copy
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from validation.compare import compare
from validation.trace import CurveKey, Event, Sketch, TableKey, Trace

from .traces import TOLERANCE, random_sketch, random_trace, tolerances_of

EDITS = 1000
# An edit returns the traces to compare: NaN must be noticed even where both sides have it.
Pair = tuple[Trace, Trace]
Edit = Callable[[Trace, Random], Pair]


def with_events(trace: Trace, events: list[Event]) -> Trace:
    return replace(trace, events=events)


def pick(trace: Trace, random: Random, *, floating: bool | None = None) -> int:
    fit = [i for i, e in enumerate(trace.events) if floating is None or e.floating is floating]
    return random.choice(fit)


def drop_event(trace: Trace, random: Random) -> Pair:
    events = list(trace.events)
    del events[pick(trace, random)]
    return trace, with_events(trace, events)


def add_event(trace: Trace, random: Random) -> Pair:
    event = random.choice(trace.events)
    key = replace(event.key, occurrence=event.key.occurrence + 1)
    return trace, with_events(trace, [*trace.events, Event(key, event.value)])


def move_event(trace: Trace, random: Random) -> Pair:
    """The record is there, under another name, step, phase or rank."""
    index = pick(trace, random)
    event = trace.events[index]
    change: dict[str, Any] = random.choice(
        [{"module": "renamed"}, {"tensor": "renamed"}, {"step": 9}, {"rank": 1}, {"micro_batch": 1}]
    )
    events = list(trace.events)
    events[index] = Event(replace(event.key, **change), event.value)
    return trace, with_events(trace, events)


def change_sketch(trace: Trace, random: Random) -> Pair:
    index = pick(trace, random, floating=True)
    sketch = trace.events[index].value
    assert isinstance(sketch, Sketch)
    size = 1 + random.uniform(20, 1e5) * TOLERANCE * random.choice((-1, 1))
    changed = random.choice(
        [
            replace(
                sketch,
                norm=sketch.norm * size,
                digest="0" * 16,
                projections=tuple(p * size for p in sketch.projections),
            ),
            replace(random_sketch(random)),
            replace(sketch, shape=(8, 4)),
            replace(sketch, dtype="bfloat16"),
            replace(sketch, norm=math.nan, digest="0" * 16),
            replace(sketch, norm=math.inf, digest="0" * 16),
            replace(sketch, norm=sketch.norm * 2),  # the digest says otherwise
        ]
    )
    events = list(trace.events)
    events[index] = Event(events[index].key, changed)
    return trace, with_events(trace, events)


def sketch_becomes_fact(trace: Trace, random: Random) -> Pair:
    index = pick(trace, random, floating=True)
    events = list(trace.events)
    events[index] = Event(events[index].key, random.choice([None, 0.0, [], "float32"]))
    return trace, with_events(trace, events)


def change_fact(trace: Trace, random: Random) -> Pair:
    index = pick(trace, random, floating=False)
    value = copy.deepcopy(trace.events[index].value)
    if isinstance(value, list):
        place = random.randrange(len(value))
        value[place] = random.choice([-1, str(value[place]), [value[place]]])
        value = random.choice([value, value[:-1], [*value, 0]])
    else:
        name = random.choice(sorted(value))
        value[name] = random.choice([1, True, None]) if value[name] not in (1, True) else 1.0
        if random.random() < 0.3:
            del value[name]
    events = list(trace.events)
    events[index] = Event(events[index].key, value)
    return trace, with_events(trace, events)


def nan_fact_in_both(trace: Trace, random: Random) -> Pair:
    index = pick(trace, random, floating=False)
    events = list(trace.events)
    events[index] = Event(events[index].key, [1.0, random.choice([math.nan, math.inf])])
    return with_events(trace, events), with_events(trace, list(events))


def nan_sketch_in_both(trace: Trace, random: Random) -> Pair:
    index = pick(trace, random, floating=True)
    sketch = trace.events[index].value
    assert isinstance(sketch, Sketch)
    events = list(trace.events)
    events[index] = Event(events[index].key, replace(sketch, norm=math.nan))
    return with_events(trace, events), with_events(trace, list(events))


def edit_curve(trace: Trace, random: Random) -> Pair:
    curves = {name: dict(series) for name, series in trace.curves.items()}
    name = random.choice(sorted(curves))
    step = random.choice(sorted(curves[name]))
    kind = random.choice(["drop", "add", "value", "nan", "inf", "rename", "drop all", "swap"])
    if kind == "drop":
        del curves[name][step]
    elif kind == "add":
        curves[name][max(curves[name]) + 1] = curves[name][step]
    elif kind == "value":
        curves[name][step] *= 1 + random.uniform(2, 1e5) * TOLERANCE * random.choice((-1, 1))
    elif kind in ("nan", "inf"):
        curves[name][step] = float(kind) * random.choice((-1, 1))
    elif kind == "rename":
        curves[CurveKey(f"{name}_")] = curves.pop(name)
    elif kind == "drop all":
        del curves[name]
    else:
        other = random.choice([n for n in sorted(curves) if n != name])
        curves[name], curves[other] = curves[other], curves[name]
    phases = {**trace.curve_phases, CurveKey(f"{name}_"): "forward"}
    return trace, replace(trace, curves=curves, curve_phases=phases)


def nan_curve_in_both(trace: Trace, random: Random) -> Pair:
    curves = {name: dict(series) for name, series in trace.curves.items()}
    name = random.choice(sorted(curves))
    curves[name][random.choice(sorted(curves[name]))] = random.choice([math.nan, math.inf])
    both = replace(trace, curves=curves)
    return both, replace(trace, curves=copy.deepcopy(curves))


def edit_table(trace: Trace, random: Random) -> Pair:
    tables = {name: [list(row) for row in rows] for name, rows in trace.tables.items()}
    name = random.choice(sorted(tables))
    kind = random.choice(["drop", "add", "rename", "row", "cell", "order"])
    if kind == "drop":
        del tables[name]
    elif kind == "add":
        tables[TableKey("another")] = tables[name]
    elif kind == "rename":
        tables[TableKey("renamed")] = tables.pop(name)
    elif kind == "row":
        tables[name] = tables[name][:-1]
    elif kind == "cell":
        tables[name][random.randrange(len(tables[name]))][-1] += random.choice((-1, 1))
    else:
        tables[name].reverse()
    return trace, replace(trace, tables=tables)


def empty(trace: Trace, random: Random) -> Pair:
    del random
    return trace, Trace(trace.case)


ALL: list[Edit] = [
    drop_event,
    add_event,
    move_event,
    change_sketch,
    sketch_becomes_fact,
    change_fact,
    nan_fact_in_both,
    nan_sketch_in_both,
    edit_curve,
    nan_curve_in_both,
    edit_table,
    empty,
]


def test_a_thousand_edits_are_noticed_or_equal() -> None:
    done: Counter[str] = Counter()
    for number in range(EDITS):
        random = Random(number)
        trace = random_trace(number % 7)
        edit = ALL[number % len(ALL)]
        golden, actual = edit(trace, random)
        for one, other in ((golden, actual), (actual, golden)):
            comparison = compare(one, other, tolerances_of(trace))
            noticed = bool(comparison.divergences) or comparison.compared == 0
            equal = (one.events, one.curves, one.tables) == (
                other.events,
                other.curves,
                other.tables,
            )
            assert noticed or equal, f"{edit.__name__}, edit {number}"
            done[edit.__name__] += noticed
    assert all(done[edit.__name__] > EDITS / len(ALL) for edit in ALL), done


def test_no_edit_is_a_pass() -> None:
    for seed in range(7):
        trace = random_trace(seed)
        comparison = compare(trace, copy.deepcopy(trace), tolerances_of(trace))
        assert comparison.compared == comparison.identical == trace.records
        assert not comparison.divergences


@pytest.mark.parametrize("edit", [change_sketch, edit_curve, change_fact, edit_table])
def test_the_place_of_the_edit_is_named(edit: Edit) -> None:
    for number in range(50):
        golden, actual = edit(random_trace(0), Random(number))
        comparison = compare(golden, actual, tolerances_of(golden))
        if not comparison.divergences:
            assert (golden.curves, golden.tables) == (actual.curves, actual.tables)
            continue
        first = comparison.divergences[0]
        assert first.module
        assert first.phase
        assert first.step is not None
        assert repr(first.expected) != repr(first.actual)
