"""Geometry of the report's curves, by properties that a chart must have."""

import itertools
import math
import re

from hypothesis import example, given
from hypothesis import strategies as st

from validation.report.charts import MAX_POINTS, Axis, curve_chart, format_number

finite = st.floats(-1e12, 1e12, allow_nan=False)
anything = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]


@given(st.lists(st.tuples(anything, anything, anything), min_size=1, max_size=40))
def test_any_series_gives_finite_paths_inside_the_box(rows: list[tuple]) -> None:
    golden, actual, room = (list(column) for column in zip(*rows, strict=True))
    room = [abs(t) if t is not None else None for t in room]
    chart = curve_chart(range(len(rows)), golden, actual, room, first_difference=0)
    plots = [p for p in (chart.value, chart.deviation) if p is not None]
    for plot in plots:
        for path in (plot.golden, plot.actual, plot.band, plot.limit):
            assert re.fullmatch(r"[MLZ\d. -]*", path)
            assert all(0 <= x <= 1000 and 0 <= y <= 1000 for x, y in points(path))
        assert all(0 <= t.percent <= 100 for t in plot.y_ticks)


@given(st.lists(finite, min_size=2, max_size=30))
def test_a_higher_value_is_drawn_higher(values: list[float]) -> None:
    chart = curve_chart(
        range(len(values)), values, values, [None] * len(values), first_difference=None
    )
    drawn = [y for _, y in points(chart.value.actual)]
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert all(drawn[a] >= drawn[b] for a, b in itertools.pairwise(order))
    assert chart.deviation is None


def test_a_missing_value_breaks_the_line_and_a_lone_one_is_a_dot() -> None:
    chart = curve_chart(
        range(5), [1.0] * 5, [1.0, 2.0, None, 3.0, math.nan], [None] * 5, first_difference=None
    )
    assert chart.value.actual.count("M") == 2
    lone = chart.value.actual.split("M")[-1].split("L")
    assert lone[0] == lone[1]


def test_the_band_is_golden_plus_minus_tolerance() -> None:
    chart = curve_chart([0, 1], [1.0, 1.0], [1.0, 3.0], [0.5, 0.5], first_difference=1)
    ys = [y for _, y in points(chart.value.band)]
    golden_y = points(chart.value.golden)[0][1]
    assert ys[0] < golden_y < ys[-1]
    assert math.isclose(golden_y - ys[0], ys[-1] - golden_y, abs_tol=0.11)
    assert chart.marker_percent == 100


def test_deviation_is_drawn_against_its_limit() -> None:
    chart = curve_chart(
        [1, 2, 3], [1.0, 1.0, 1.0], [1.0, 1.0 + 1e-9, 1.1], [1e-4] * 3, first_difference=3
    )
    assert chart.deviation is not None
    limit = points(chart.deviation.limit)[0][1]
    _, small, large = (y for _, y in points(chart.deviation.actual))
    assert large < limit < small


def test_a_long_series_keeps_its_extremes_and_the_marked_step() -> None:
    n = 50_000
    golden: list[float | None] = [math.sin(i / 500) for i in range(n)]
    actual = list(golden)
    actual[31_337] = 40.0
    chart = curve_chart(range(n), golden, actual, [None] * n, first_difference=31_337)
    assert len(points(chart.value.golden)) <= 2 * MAX_POINTS
    top = min(y for _, y in points(chart.value.actual))
    assert top < 100
    assert chart.marker_percent is not None
    assert math.isclose(chart.marker_percent, 62.67, abs_tol=0.02)


@example(5.5e15, 1.0)
@given(st.floats(-1e30, 1e30), st.floats(1e-6, 1e30))
def test_ticks_lie_on_the_axis_in_order(low: float, span: float) -> None:
    ticks = [t.percent for t in Axis(low, low + span).ticks()]
    assert ticks == sorted(ticks)
    assert all(0 <= t <= 100 for t in ticks)
    assert len(ticks) <= 8


def test_numbers_are_short() -> None:
    shown = [format_number(v) for v in (0.0, 2.3025851, 1200.0, 3.1e-7, 1e9, math.nan, -math.inf)]
    assert shown == ["0", "2.303", "1,200", "3.1e-7", "1e9", "nan", "-inf"]
