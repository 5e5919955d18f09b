"""`write_trend`: past benchmarks as one HTML file that needs no network, change points marked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from validation.files import write_atomically
from validation.report.charts import TrendChart, format_number, trend_chart
from validation.report.page import TONES
from validation.report.wording import clean
from validation.throughput.trend import Point, change_points


@dataclass(frozen=True)
class Row:
    """One benchmark of a case; `change` is empty unless a new level begins with it."""

    run: str
    head: str
    verdict: str
    tone: str
    cost: str
    ratio: str
    change: str


@dataclass(frozen=True)
class TrendView:
    """One case: its series as a drawing and as rows, latest first.

    Attributes:
        case: Name.
        chart: step time over the reference kernel's, oldest first.
        summary: what became of it since the first level.
        rows: the series' points.
    """

    case: str
    chart: TrendChart
    summary: str
    rows: Sequence[Row]


def trend_view(case: str, points: Sequence[Point]) -> TrendView:
    """Gathers what the page says of one case.

    Args:
        case: Name.
        points: at least one, oldest first.

    Returns:
        What the template shows.
    """
    costs = [point.relative_cost for point in points]
    changes = change_points(costs)
    begins = {change.index: f"{change.ratio - 1:+.2%}" for change in changes}
    total = f"{changes[-1].total - 1:+.2%} since the first level" if changes else "no change"
    return TrendView(
        case=clean(case),
        chart=trend_chart(costs, [(change.index, change.ratio) for change in changes]),
        summary=f"{len(points)} runs, {total}",
        rows=[
            Row(
                run=clean(point.run),
                head=clean(point.head[:12]),
                verdict=point.verdict,
                tone=TONES[point.verdict],
                cost=format_number(point.relative_cost, 5),
                ratio=f"{point.ratio:.4f}",
                change=begins.get(index, ""),
            )
            for index, point in reversed(list(enumerate(points)))
        ],
    )


def render_trend_page(lane: str, series: Mapping[str, Sequence[Point]]) -> str:
    """Renders the page.

    Args:
        lane: where the benchmarks ran.
        series: case to its past benchmarks, oldest first.

    Returns:
        The HTML text.
    """
    room = files("validation.report")
    engine = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = engine.from_string(room.joinpath("trend.html.j2").read_text("utf-8"))
    return template.render(
        lane=lane,
        cases=[trend_view(case, points) for case, points in series.items() if points],
        css=Markup(room.joinpath("page.css").read_text("utf-8")),  # noqa: S704 our own file
    )


def write_trend(lane: str, series: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Writes the page to `path`, atomically; arguments as `render_trend_page`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render_trend_page(lane, series).encode())
