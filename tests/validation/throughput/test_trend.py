"""Change points: small steps that add up are found, noise alone is not."""

import json
from pathlib import Path

import numpy as np
import pytest

from validation.files import DamagedFileError
from validation.throughput.table import render_trend, trend_json
from validation.throughput.trend import Point, change_points, read_series


def test_five_small_steps_are_one_large_one() -> None:
    found = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        levels = np.repeat(1.008 ** np.arange(6), 8)
        changes = change_points(list(levels * np.exp(generator.normal(0, 0.003, levels.size))))
        assert changes
        found += 0.033 < changes[-1].total - 1 < 0.048
    assert found >= 19


def test_a_single_step_is_placed() -> None:
    generator = np.random.default_rng(1)
    series = np.exp(generator.normal(0, 0.003, 40))
    series[25:] *= 1.02
    (change,) = change_points(list(series))
    assert abs(change.index - 25) <= 1
    assert change.ratio == pytest.approx(1.02, abs=0.004)


def test_noise_has_no_change_points() -> None:
    alarms = sum(
        bool(change_points(list(np.exp(np.random.default_rng(seed).normal(0, 0.01, 40)))))
        for seed in range(60)
    )
    assert alarms <= 3
    assert change_points([]) == change_points([1.0]) == change_points([1.0, 2.0, 3.0]) == []


def test_past_runs_are_read_in_order_without_the_disturbed(tmp_path: Path) -> None:
    def leave(run: str, verdict: str, cost: float, lane: str = "cpu") -> None:
        case = {
            "case": "paced",
            "verdict": verdict,
            "figures": {"head": {"relative_cost": cost}},
            "judgement": {"ratio": 1.0},
        }
        document = {"schema": 1, "lane": lane, "fault": None, "head": "abc", "cases": [case]}
        (tmp_path / run).mkdir()
        (tmp_path / run / "bench.json").write_text(json.dumps(document))

    leave("2-later", "FAIL", 2.0)
    leave("1-earlier", "PASS", 1.0)
    leave("3-disturbed", "UNFIT", 9.0)
    leave("4-elsewhere", "PASS", 9.0, lane="h200")
    points = read_series(tmp_path, "cpu")["paced"]
    assert [(p.run, p.relative_cost) for p in points] == [("1-earlier", 1.0), ("2-later", 2.0)]
    (tmp_path / "1-earlier" / "bench.json").write_text('{"schema": 1, "lane": "cpu"}')
    with pytest.raises(DamagedFileError, match="1-earlier"):
        read_series(tmp_path, "cpu")


def test_the_trend_is_printed_with_its_change_points() -> None:
    points = [
        Point(f"run{i}", "0123456789abcdef", "PASS", 2.0 if i < 10 else 2.1, 1.0) for i in range(20)
    ]
    lines = render_trend({"paced": points}).splitlines()
    assert len(lines) == 21
    assert [line for line in lines if "<-" in line] == [lines[11]]
    assert lines[11].endswith("<- +5.00%, +5.00% since the first level")
    assert trend_json({"paced": points})["paced"]["changes"][0]["index"] == 10
    assert "no benchmark yet" in render_trend({})
