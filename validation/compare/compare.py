"""Comparison of a run's trace with a golden one: every record, in execution order.

Discrete records and tables are equal or not. Floating ones may differ by their class's tolerance;
a NaN or an infinity never passes, in either trace, nor does a record that only one of them has.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from validation.compare.divergence import Divergence
from validation.compare.tolerance import EXACT, Tolerances
from validation.trace.classes import curve_class, event_class
from validation.trace.model import (
    PHASES,
    CurveKey,
    Event,
    HeldInvariant,
    Key,
    RecordKind,
    Trace,
)
from validation.trace.sketch import Sketch, relative_distance

# A value far below its class's largest is measured on that scale: a gradient that is zero up to
# rounding has no relative accuracy of its own.
_CLASS_FLOOR = 1e-3

MISSING = "missing"

# Longer lists and mappings are shown by their size.
_SHOWN = 8

# How NaN and infinities are written in a trace: never equal to anything, themselves included.
NOT_FINITE = ("nan", "inf", "-inf")


@dataclass(frozen=True)
class CurveComparison:
    """A metric of both traces, step by step, as the reports draw it.

    Attributes:
        key: its metric and rank.
        steps: every step of either trace.
        golden: values of the golden; None where it has none.
        actual: values of the run; None where it has none.
        tolerance: relative tolerance by step.
        first_difference: first step beyond its tolerance.
    """

    key: CurveKey
    steps: Sequence[int]
    golden: Sequence[float | None]
    actual: Sequence[float | None]
    tolerance: Sequence[float]
    first_difference: int | None


@dataclass(frozen=True)
class Outcome:
    """One floating record of both traces.

    Attributes:
        place: where it is, and of which kind.
        record_class: its tolerance class.
        error: relative error; 0 when bit-identical.
        tolerance: what it may be.
    """

    place: Divergence
    record_class: str
    error: float
    tolerance: float

    @property
    def ratio(self) -> float:
        """Error over tolerance: beyond 1 it diverges; inf where nothing was allowed, or a NaN."""
        if self.error == 0.0:
            return 0.0
        if not self.tolerance or not math.isfinite(self.error):
            return math.inf
        return self.error / self.tolerance


@dataclass(frozen=True)
class Catch:
    """A planted bug that a comparison shows, and how plainly.

    Attributes:
        first: the deciding divergence, the first in execution order.
        margin: error over tolerance of the worst floating record; inf where a discrete record, an
            invariant or a table differs.
    """

    first: Divergence
    margin: float

    @property
    def place(self) -> str:
        """Where the gate says that the bug is."""
        return ".".join(part for part in (self.first.module, self.first.tensor) if part)


@dataclass(frozen=True)
class Comparison:
    """A run against its golden.

    Attributes:
        compared: records that both traces have.
        identical: of these, bit-identical ones.
        divergences: beyond tolerance, missing or extra, in execution order.
        outcomes: every floating record.
        curves: for drawing.
        golden: the golden trace.
        actual: the run's trace.
    """

    compared: int
    identical: int
    divergences: Sequence[Divergence]
    outcomes: Sequence[Outcome]
    curves: Sequence[CurveComparison]
    golden: Trace
    actual: Trace

    @property
    def largest(self) -> Outcome | None:
        """The floating record with the largest ratio; None where none was compared."""
        return max(self.outcomes, key=lambda outcome: outcome.ratio, default=None)

    @property
    def caught(self) -> Catch | None:
        """What a comparison with a planted bug shows of it; None if nothing.

        A record that only one trace has proves nothing: a bug that ends a run early, or that keeps
        a hook from its tensor, would be caught by any comparison, however blind to values.
        """
        differing = [d for d in self.divergences if not one_trace_only(d)]
        if not differing:
            return None
        worst = self.largest
        discrete = worst is None or any(d.relative_error is None for d in differing)
        return Catch(differing[0], math.inf if discrete or worst is None else worst.ratio)


def one_trace_only(divergence: Divergence) -> bool:
    """Whether only one trace has the record; with an offset, both have it and one is shorter."""
    return divergence.offset is None and MISSING in (divergence.expected, divergence.actual)


def compare(
    golden: Trace, actual: Trace, tolerances: Tolerances = EXACT, *, exact: bool = False
) -> Comparison:
    """Compares two traces of a case.

    Args:
        golden: what is expected.
        actual: what a run left.
        tolerances: of the golden.
        exact: require bit-identity of floating records as well.

    Returns:
        Divergences in execution order, and an outcome for each compared record.
    """
    allowed = EXACT if exact else tolerances
    found: list[tuple[tuple[Any, ...], Divergence]] = []
    outcomes: list[Outcome] = []
    compared = identical = 0
    for order, difference, outcome, equal in (
        *_events(golden, actual, allowed),
        *_curve_values(golden, actual, allowed),
        *_tables(golden, actual),
    ):
        if difference is not None:
            found.append((order, difference))
        if outcome is not None:
            outcomes.append(outcome)
        if equal is not None:
            compared += 1
            identical += equal
    found.sort(key=lambda item: item[0])
    return Comparison(
        compared=compared,
        identical=identical,
        divergences=[divergence for _, divergence in found],
        outcomes=outcomes,
        curves=list(_drawn_curves(golden, actual, allowed)),
        golden=golden,
        actual=actual,
    )


# (order, divergence or None, floating outcome or None, identical or None when not compared)
_Found = tuple[tuple[Any, ...], Divergence | None, Outcome | None, bool | None]


def _events(golden: Trace, actual: Trace, tolerances: Tolerances) -> Iterator[_Found]:
    expected, measured = _placed(golden.events), _placed(actual.events)
    scales = _event_scales(golden)
    for key in [*expected, *(key for key in measured if key not in expected)]:
        index, event = expected.get(key) or measured[key]
        order = (key.step, 0, index, key.rank)
        if key not in expected or key not in measured:
            yield order, _one_sided(key, expected.get(key), measured.get(key)), None, None
            continue
        other = measured[key][1]
        if isinstance(event.value, Sketch) and isinstance(other.value, Sketch):
            name = event_class(key)
            error = relative_distance(
                event.value, other.value, _CLASS_FLOOR * scales[name, key.step]
            )
            if not all(math.isfinite(s.norm) for s in (event.value, other.value)):
                error = math.nan
            tolerance = tolerances.of(name, key.step)
            place = _place(
                key, event.kind, _shown(event.value), _shown(other.value), error, tolerance
            )
            outcome = Outcome(place, name, error, tolerance)
            yield order, None if error <= tolerance else place, outcome, error == 0.0
        elif _same(event.value, other.value) and not _broken(other):
            yield order, None, None, True
        else:
            yield order, _discrete(key, event, other), None, False


def _placed(events: Sequence[Event]) -> dict[Key, tuple[int, Event]]:
    """Key -> (place among the events of its rank, event): ranks run side by side."""
    counts: dict[int, int] = defaultdict(int)
    placed = {}
    for event in events:
        placed[event.key] = (counts[event.key.rank], event)
        counts[event.key.rank] += 1
    return placed


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal, of the same types throughout, and finite."""
    if isinstance(one, HeldInvariant) and isinstance(other, HeldInvariant):
        return _same(one.to_json(), other.to_json())
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if type(one) is not type(other) or one in NOT_FINITE:
        return False
    return bool(one == other) and (not isinstance(one, float) or math.isfinite(one))


def _broken(event: Event) -> bool:
    """Whether this is an invariant that does not hold, even if the golden has it so."""
    return isinstance(event.value, HeldInvariant) and not event.value.holds


def _event_scales(trace: Trace) -> Mapping[tuple[str, int], float]:
    scales: dict[tuple[str, int], float] = defaultdict(float)
    for event in trace.events:
        if isinstance(event.value, Sketch) and math.isfinite(event.value.norm):
            place = event_class(event.key), event.key.step
            scales[place] = max(scales[place], event.value.norm)
    return scales


def _curve_values(golden: Trace, actual: Trace, tolerances: Tolerances) -> Iterator[_Found]:
    scales: dict[tuple[str, int], float] = defaultdict(float)
    for key, series in golden.curves.items():
        for step, value in series.items():
            if math.isfinite(value):
                place = curve_class(key), step
                scales[place] = max(scales[place], abs(value))
    for key in _union(golden.curves, actual.curves):
        phase = golden.curve_phases.get(key) or actual.curve_phases.get(key, "forward")
        expected, measured = golden.curves.get(key, {}), actual.curves.get(key, {})
        name = curve_class(key)
        for step in _union(expected, measured):
            order = (step, 1, PHASES.index(phase), key)
            one, other = expected.get(step), measured.get(step)
            tolerance = tolerances.of(name, step)
            error = None
            if one is not None and other is not None:
                error = _relative_error(one, other, _CLASS_FLOOR * scales[name, step])
            divergence = Divergence(
                step=step,
                phase=phase,
                module="training",
                tensor=key.metric,
                rank=key.rank,
                expected=MISSING if one is None else one,
                actual=MISSING if other is None else other,
                relative_error=error,
                tolerance=tolerance,
                kind=RecordKind.CURVE,
            )
            if error is None:
                yield order, divergence, None, None
            else:
                outcome = Outcome(divergence, name, error, tolerance)
                yield order, None if error <= tolerance else divergence, outcome, error == 0.0


def _tables(golden: Trace, actual: Trace) -> Iterator[_Found]:
    for key in _union(golden.tables, actual.tables):
        order = (0, 2, 0, key)
        one, other = golden.tables.get(key), actual.tables.get(key)
        place = Divergence(
            step=0,
            phase="forward",
            module=key.name,
            tensor="table",
            rank=key.rank or None,  # the contract's object of a first rank's table has none
            kind=RecordKind.TABLE,
        )
        if one is None or other is None:
            yield (
                order,
                replace(
                    place,
                    expected=MISSING if one is None else f"{len(one)} rows",
                    actual=MISSING if other is None else f"{len(other)} rows",
                ),
                None,
                None,
            )
            continue
        rows = [list(row) for row in one], [list(row) for row in other]
        if _same(*rows):
            yield order, None, None, True
            continue
        offset = _first_difference(*rows)
        yield (
            order,
            replace(
                place,
                offset=offset,
                expected=rows[0][offset] if offset < len(rows[0]) else MISSING,
                actual=rows[1][offset] if offset < len(rows[1]) else MISSING,
            ),
            None,
            False,
        )


def _drawn_curves(
    golden: Trace, actual: Trace, tolerances: Tolerances
) -> Iterator[CurveComparison]:
    beyond: dict[CurveKey, int] = {}
    for (step, _, _, key), divergence, _, _ in _curve_values(golden, actual, tolerances):
        if divergence is not None:
            beyond[key] = min(step, beyond.get(key, step))
    for key in _union(golden.curves, actual.curves):
        expected, measured = golden.curves.get(key, {}), actual.curves.get(key, {})
        steps = sorted({*expected, *measured})
        yield CurveComparison(
            key=key,
            steps=steps,
            golden=[expected.get(step) for step in steps],
            actual=[measured.get(step) for step in steps],
            tolerance=[tolerances.of(curve_class(key), step) for step in steps],
            first_difference=beyond.get(key),
        )


def _relative_error(expected: float, actual: float, floor: float) -> float:
    if not (math.isfinite(expected) and math.isfinite(actual)):
        return math.nan
    if expected == actual:
        # -0.0 is another bit pattern, and no difference that training could see.
        return 0.0
    reference = max(abs(expected), floor)
    return abs(actual - expected) / reference if reference else math.inf


def _one_sided(
    key: Key, golden: tuple[int, Event] | None, actual: tuple[int, Event] | None
) -> Divergence:
    event = golden[1] if golden else actual[1] if actual else None
    return _place(
        key,
        event.kind if event else None,
        MISSING if golden is None else _shown(golden[1].value),
        MISSING if actual is None else _shown(actual[1].value),
        None,
        None,
    )


def _discrete(key: Key, golden: Event, actual: Event) -> Divergence:
    expected, measured = _json(golden.value), _json(actual.value)
    alike = golden.kind is actual.kind or actual.kind is RecordKind.INVARIANT
    kind = actual.kind if alike else RecordKind.DISCRETE
    offset = None
    if isinstance(expected, list) and isinstance(measured, list):
        offset = _first_difference(expected, measured)
        expected = expected[offset] if offset < len(expected) else MISSING
        measured = measured[offset] if offset < len(measured) else MISSING
    path = []
    if isinstance(actual.value, HeldInvariant) and not actual.value.holds:
        held = actual.value
        expected, measured = f"{held.name} holds", f"broken by {held.error}, allowed {held.bound}"
    while isinstance(expected, Mapping) and isinstance(measured, Mapping):
        keys = _union(expected, measured)
        name = next(
            k for k in keys if not _same(expected.get(k, MISSING), measured.get(k, MISSING))
        )
        path.append(str(name))
        expected, measured = expected.get(name, MISSING), measured.get(name, MISSING)
    expected, measured = _shown(expected), _shown(measured)
    if path:
        expected, measured = ({".".join(path): value} for value in (expected, measured))
    return _place(key, kind, expected, measured, None, None, offset)


def _json(value: Any) -> Any:
    return value.to_json() if isinstance(value, HeldInvariant) else value


def _place(
    key: Key,
    kind: RecordKind | None,
    expected: Any,
    actual: Any,
    error: float | None,
    tolerance: float | None,
    offset: int | None = None,
) -> Divergence:
    return Divergence(
        step=key.step,
        micro_batch=key.micro_batch,
        phase=key.phase,
        module=key.module,
        tensor=key.tensor,
        rank=key.rank,
        offset=offset,
        expected=expected,
        actual=actual,
        relative_error=error,
        tolerance=tolerance,
        kind=kind,
    )


def _shown(value: Any) -> Any:
    """A record as a reader sees it: a sketch's shape and norm, the size of what is long."""
    value = _json(value)
    if isinstance(value, Sketch):
        shape = "x".join(map(str, value.shape)) or "scalar"
        return f"{value.dtype} {shape}, norm {value.norm!r}"
    if isinstance(value, list | tuple | Mapping) and len(value) > _SHOWN:
        return f"{len(value)} values"
    return value


def _first_difference(one: Sequence[Any], other: Sequence[Any]) -> int:
    pairs = zip(one, other, strict=False)
    shorter = min(len(one), len(other))
    return next((i for i, (a, b) in enumerate(pairs) if not _same(a, b)), shorter)


def _union(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> list[Any]:
    return [*one, *(key for key in other if key not in one)]
