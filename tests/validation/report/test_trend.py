"""The trend's page: the series, its levels, and a mark where a level begins."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from validation.report.charts import trend_chart
from validation.report.trend import render_trend_page, write_trend
from validation.throughput.trend import Point

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Five slowdowns of 0.8 %, eight nights each.
SERIES = [
    Point(f"202601{i:02}-h200-ab", f"{i:040x}", "PASS" if i % 7 else "FAIL", 2 * 1.008**j, 1.0)
    for i, j in enumerate(sorted(list(range(6)) * 8), start=1)
]


def points(path: str) -> list[list[tuple[float, float]]]:
    """Each stroke's points; numbers alone are drawn."""
    assert re.fullmatch(r"[ML\d. ]+", path)
    strokes = [s.split("L") for s in path.split("M")[1:]]
    return [[(float(p.split()[0]), float(p.split()[1])) for p in s] for s in strokes]


def test_levels_are_means_between_the_changes() -> None:
    chart = trend_chart([1.0, 1.1, 1.0, 2.0, 2.0, 2.2], [(3, 2.0)])
    low, high = points(chart.plot.golden)
    assert [x for x, _ in low] == [0, 200, 400]
    assert [x for x, _ in high] == [600, 800, 1000]
    assert len({y for _, y in low}) == len({y for _, y in high}) == 1
    (series,) = points(chart.plot.actual)
    # Upwards is smaller in SVG: the slow level is the upper one, and each between its extremes.
    assert high[0][1] < low[0][1]
    assert series[1][1] < low[0][1] < series[0][1]
    assert series[5][1] < high[0][1] < series[3][1]
    assert [(m.percent, m.label) for m in chart.marks] == [(50.0, "+100.00%")]


def test_one_run_and_unusable_numbers_are_drawn() -> None:
    assert points(trend_chart([2.0], []).plot.actual)
    chart = trend_chart([1.0, float("nan"), 1.0], [])
    assert len(points(chart.plot.actual)) == 2


def test_small_slowdowns_add_up_on_the_page(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "trend.html"
    write_trend("h200", {"moe": SERIES, "never": []}, path)
    page = path.read_text()
    # Five steps of the exact series, each found, and their sum.
    assert page.count('<div class="mark') == 5
    assert page.count("+0.80%") == 10
    assert "+4.06% since the first level" in page
    assert page.index("20260148") < page.index("20260147")
    assert "never" not in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert "No benchmark yet" in render_trend_page("h200", {})


def test_what_a_file_says_is_escaped() -> None:
    evil = Point("<script>x</script>", "<b>", "PASS", 1.0, 1.0)
    page = render_trend_page("cpu", {"<i>": [evil]})
    assert "<script" not in page
    assert "<b>" not in page
    assert "<i>" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_draws_it(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    write_trend("h200", {"moe": SERIES}, tmp_path / "trend.html")
    shot = tmp_path / "page.png"
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}"]
    words += ["--window-size=1120,700", (tmp_path / "trend.html").as_uri()]
    subprocess.run([CHROMIUM, *words], check=True, capture_output=True, timeout=120)
    assert shot.stat().st_size > 20_000
