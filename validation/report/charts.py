"""Geometry of the report's curves: numbers in, SVG paths and axis labels out.

A plot is drawn in a 1000 x 1000 box that the page stretches to its width; strokes do not scale
and labels are HTML beside the drawing, so a chart is readable on a phone.  Nothing here touches
text from a trace: paths are made of numbers alone.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BOX = 1000.0
MAX_POINTS = 600
_MIN_LOG = 1e-18
_LARGEST = 1e150


@dataclass(frozen=True)
class Tick:
    """An axis label: position in percent from the axis' start, and its text."""

    percent: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis from `low` to `high`."""

    low: float
    high: float
    log: bool = False

    def unit(self, value: float) -> float:
        """Returns `value` as a fraction of the axis, clipped to [0, 1]."""
        low, high = self.low, self.high
        if self.log:
            value = math.log10(max(value, _MIN_LOG))
            low, high = math.log10(low), math.log10(high)
        if high <= low:
            return 0.5
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self, count: int = 5, *, integers: bool = False) -> list[Tick]:
        """Returns about `count` labels at round numbers, whole ones if asked."""
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            decades = max(1, math.ceil((last - first + 1) / count))
            values = [10.0**e for e in range(first, last + 1, decades)]
        else:
            values = _round_values(self.low, self.high, count)
            values = [v for v in values if not integers or v.is_integer()]
            # Far from zero round numbers may round to one another, or off the axis.
            values = list(dict.fromkeys(v for v in values if self.low <= v <= self.high))
        # Enough digits to tell neighbours apart on a short axis far from zero.
        largest = max((abs(v) for v in values), default=0.0)
        stride = abs(values[1] - values[0]) if len(values) > 1 else 0.0
        ratio = largest / stride if stride and not self.log else 1.0
        digits = max(4, math.ceil(math.log10(ratio)) + 2) if math.isfinite(ratio) else 4
        return [Tick(100 * self.unit(v), format_number(v, digits)) for v in values]


@dataclass(frozen=True)
class Plot:
    """One drawing: paths in the box, labels in percent.

    Attributes:
        golden: path of the golden series ("" when absent).
        actual: path of the run's series.
        band: closed path of the tolerance band, or "".
        limit: path of the tolerance line in a deviation plot, or "".
        y_ticks: labels from the bottom.
    """

    golden: str
    actual: str
    band: str
    limit: str
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class CurveChart:
    """A metric's two plots (values, deviation) on one step axis."""

    value: Plot
    deviation: Plot | None
    x_ticks: tuple[Tick, ...]
    marker_percent: float | None
    single_step: bool


def format_number(value: float, digits: int = 4) -> str:
    """Formats a number in few characters: 0.0123, 1,200, 3.1e-7, nan, inf.

    Args:
        value: the number.
        digits: significant digits of ordinary magnitudes; very large or small ones get three,
            or as many as asked beyond four.

    Returns:
        The text.
    """
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    magnitude = abs(value)
    if magnitude >= 1e6 or magnitude < 1e-3:
        mantissa, _, exponent = f"{value:.{max(3, digits - 1) - 1}e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(exponent)}"
    if magnitude >= 1000 and float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.{digits}g}"


def curve_chart(
    steps: Sequence[int],
    golden: Sequence[float | None],
    actual: Sequence[float | None],
    tolerance: Sequence[float | None],
    *,
    first_difference: int | None,
) -> CurveChart:
    """Lays out one metric.

    Args:
        steps: training step of each point, ascending.
        golden: golden value per step; None where the golden has none.
        actual: the run's value per step; None where the run has none.
        tolerance: allowed absolute deviation per step; None where the value is discrete or
            nothing was calibrated.
        first_difference: step at which the run first differs, marked in both plots.

    Returns:
        The chart, in units of the drawing.
    """
    keep = decimate(steps, golden, actual, first_difference)
    xs = [steps[i] for i in keep]
    gold = [_finite(golden[i]) for i in keep]
    run = [_finite(actual[i]) for i in keep]
    room = [_finite(tolerance[i]) for i in keep]
    x_axis = Axis(float(xs[0]), float(xs[-1])) if xs else Axis(0, 1)
    pairs = list(zip(gold, room, strict=True))
    upper = [_finite(g + t) if g is not None and t is not None else None for g, t in pairs]
    lower = [_finite(g - t) if g is not None and t is not None else None for g, t in pairs]
    # The whole band is in view: a tolerance so wide that it flattens the curve should be seen.
    y_axis = _value_axis([*gold, *run, *lower, *upper])
    value = Plot(
        golden=_path(xs, gold, x_axis, y_axis),
        actual=_path(xs, run, x_axis, y_axis),
        band=_band(xs, lower, upper, x_axis, y_axis),
        limit="",
        y_ticks=tuple(y_axis.ticks()),
    )
    marker = None
    if first_difference is not None and xs and xs[0] <= first_difference <= xs[-1]:
        marker = 100 * x_axis.unit(first_difference)
    return CurveChart(
        value=value,
        deviation=_deviation_plot(xs, gold, run, room, x_axis),
        x_ticks=tuple(x_axis.ticks(6, integers=True)),
        marker_percent=marker,
        single_step=len(xs) == 1,
    )


@dataclass(frozen=True)
class TrendChart:
    """A series with its levels.

    Attributes:
        plot: `actual` is the series, `golden` its levels.
        x_ticks: labels from the left, counted from 1.
        marks: position in percent and text of each change of level.
    """

    plot: Plot
    x_ticks: tuple[Tick, ...]
    marks: tuple[Tick, ...]


def trend_chart(values: Sequence[float], changes: Sequence[tuple[int, float]]) -> TrendChart:
    """Lays out a series of positive values in order of time.

    Args:
        values: at least one.
        changes: index of each new level's first value, ascending, and the new level over the one
            before.

    Returns:
        The chart, in units of the drawing.
    """
    xs = range(1, len(values) + 1)
    shown = [_finite(value) for value in values]
    x_axis, y_axis = Axis(1.0, float(len(values))), _value_axis(shown)
    bounds = [0, *(index for index, _ in changes), len(values)]
    levels = [
        _path(xs[a:b], [_mean(shown[a:b])] * (b - a), x_axis, y_axis)
        for a, b in itertools.pairwise(bounds)
    ]
    # A level changes between two points.
    marks = [Tick(100 * x_axis.unit(i + 0.5), f"{ratio - 1:+.2%}") for i, ratio in changes]
    return TrendChart(
        plot=Plot(
            golden="".join(levels),
            actual=_path(xs, shown, x_axis, y_axis),
            band="",
            limit="",
            y_ticks=tuple(y_axis.ticks()),
        ),
        x_ticks=tuple(x_axis.ticks(8, integers=True)),
        marks=tuple(marks),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """Returns the geometric mean of the values that are there."""
    logs = [math.log(value) for value in values if value]
    return math.exp(sum(logs) / len(logs)) if logs else None


def _deviation_plot(
    xs: Sequence[int],
    gold: Sequence[float | None],
    run: Sequence[float | None],
    room: Sequence[float | None],
    x_axis: Axis,
) -> Plot | None:
    """Returns |run - golden| against its tolerance on a log axis; None when nothing differs."""
    pairs = zip(gold, run, strict=True)
    gaps = [_finite(abs(r - g)) if r is not None and g is not None else None for g, r in pairs]
    shown = [v for v in (*gaps, *room) if v]
    if not any(gaps) or not shown:
        return None
    low = 10.0 ** math.floor(math.log10(max(min(shown), _MIN_LOG)))
    high = 10.0 ** math.ceil(math.log10(max(shown) * 1.01))
    axis = Axis(low, max(high, low * 10), log=True)
    return Plot(
        golden="",
        actual=_path(xs, gaps, x_axis, axis),
        band="",
        limit=_path(xs, [t or None for t in room], x_axis, axis),
        y_ticks=tuple(axis.ticks(3)),
    )


def _finite(value: float | None) -> float | None:
    """Returns `value`, or None for what cannot be drawn: NaN, infinities, and all but them."""
    return value if value is not None and abs(value) < _LARGEST else None


def _value_axis(values: Iterable[float | None]) -> Axis:
    numbers = [v for v in values if v is not None]
    if not numbers:
        return Axis(0.0, 1.0)
    low, high = min(numbers), max(numbers)
    # A flat line gets an axis around it instead of a division by nothing.
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return Axis(low - margin, high + margin)


def _round_values(low: float, high: float, count: int) -> list[float]:
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    raw = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    stride = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / stride - 1e-9)
    return [i * stride for i in range(first, math.floor(high / stride + 1e-9) + 1)]


def decimate(
    steps: Sequence[int],
    golden: Sequence[float | None],
    actual: Sequence[float | None],
    first_difference: int | None,
) -> list[int]:
    """Returns the indices to draw: all of a short series, each bucket's extremes of a long one."""
    if len(steps) <= MAX_POINTS:
        return list(range(len(steps)))
    keep = {0, len(steps) - 1}
    keep.update(i for i, s in enumerate(steps) if s == first_difference)
    buckets = MAX_POINTS // 4
    for b in range(buckets):
        indices = range(b * len(steps) // buckets, (b + 1) * len(steps) // buckets)
        for series in (golden, actual):
            known = [i for i in indices if _finite(series[i]) is not None]
            if known:
                keep.add(min(known, key=lambda i: series[i] or 0.0))
                keep.add(max(known, key=lambda i: series[i] or 0.0))
    return sorted(keep)


def _point(x: float, y: float, x_axis: Axis, y_axis: Axis) -> str:
    return f"{BOX * x_axis.unit(x):.1f} {BOX * (1 - y_axis.unit(y)):.1f}"


def _path(xs: Sequence[int], ys: Sequence[float | None], x_axis: Axis, y_axis: Axis) -> str:
    """Returns a polyline broken where a value is missing; a lone point is a dot."""
    parts: list[str] = []
    run: list[str] = []
    for x, y in [*zip(xs, ys, strict=True), (0, None)]:
        if y is not None:
            run.append(_point(x, y, x_axis, y_axis))
        elif run:
            # A zero-length segment with round caps is drawn as a dot.
            parts.append("M" + "L".join(run if len(run) > 1 else run * 2))
            run = []
    return "".join(parts)


def _band(
    xs: Sequence[int],
    lower: Sequence[float | None],
    upper: Sequence[float | None],
    x_axis: Axis,
    y_axis: Axis,
) -> str:
    known = [
        (x, lo, up)
        for x, lo, up in zip(xs, lower, upper, strict=True)
        if lo is not None and up is not None
    ]
    if not known:
        return ""
    top = [_point(x, up, x_axis, y_axis) for x, _, up in known]
    bottom = [_point(x, lo, x_axis, y_axis) for x, lo, _ in reversed(known)]
    return "M" + "L".join(top + bottom) + "Z"
