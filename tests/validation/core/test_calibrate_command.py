"""`golden calibrate` as a command: with torch, without it, and where nothing is measured."""

from typing import Any

import pytest

from validation.calibration.noise import PERTURBED, ROUNDING
from validation.goldens import GoldenStore

# A training of numbers: no torch in it.
BARE = """
from validation.cases import Case

def run(recorder, settings):
    weight = 1.5 * (1.0 + {unit} * (-1) ** settings.get("perturb_seed", 0))
    for step in range(1, 5):
        weight -= 0.1 * weight * weight
        recorder.curve(step, "lm_loss", weight)

CASES = [
    Case(name="bare", description="", lanes=["cpu"], target="plain_cases:run", preload=()),
]
FAULTS = []
"""
HIDE_TORCH = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec
def hidden(name, path=None, target=None):
    return None if name.partition(".")[0] == "torch" else find(name, path, target)
PathFinder.find_spec = staticmethod(hidden)
"""


def bare(project: Any, unit: str, **environment: str) -> GoldenStore:
    (project.root / "plain_cases.py").write_text(BARE.format(unit=unit))
    project.commit("a loop of numbers")
    assert project.golden("update", "bare", "--reason", "first", **environment).code == 0
    project.commit("golden")
    return GoldenStore(project.root / "goldens")


@pytest.mark.parametrize("torch", [True, False])
def test_a_loop_without_torch_is_measured_by_moved_weights(plain_project: Any, torch: bool) -> None:
    site = plain_project.root.parent / "site"
    path = {"PYTHONPATH": f"{site}:{plain_project.environment()['PYTHONPATH']}"}
    site.mkdir()
    if not torch:
        (site / "sitecustomize.py").write_text(HIDE_TORCH)
    store = bare(plain_project, "1e-7", **path)
    answer = plain_project.golden("calibrate", "bare", "--runs", "3", **path)
    assert answer.code == 0, answer.err
    golden = store.load("cpu", "bare")
    assert golden.calibration["source"] == PERTURBED
    assert len(golden.calibration["held_out"]) == 3
    assert golden.tolerances.of("curve:lm_loss", 1) > 0.0
    listed = plain_project.golden("list")
    assert f"{PERTURBED}: 0 alarms in 3 held-out whole checks" in listed.out


def test_a_loop_that_ignores_moved_weights_is_refused(plain_project: Any) -> None:
    store = bare(plain_project, "0.0")
    answer = plain_project.golden("calibrate", "bare", "--runs", "3")
    assert answer.code == 2
    assert "perturb_seed" in answer.err
    assert not store.load("cpu", "bare").tolerances.classes


def test_a_loop_with_torch_is_measured_by_random_rounding(golden_project: Any) -> None:
    golden = GoldenStore(golden_project.root / "goldens").load("cpu", "plain_loss")
    record = golden.calibration
    assert record["source"] == ROUNDING
    assert record["largest_sum"] >= 128
    assert all(0.0 < ratio <= 1.0 for ratio in record["held_out"])
    (entry,) = record["calibrated_on"]
    assert entry["runs"] == len(record["held_out"]) == 5
    held = golden_project.golden("list", "--json").json()["held_out"]["cpu"]
    assert (held["alarms"], held["checks"]) == (0, 5)


def test_too_few_reruns_are_refused(golden_project: Any) -> None:
    answer = golden_project.golden("calibrate", "plain_seed", "--runs", "2")
    assert answer.code == 2
    assert "--runs: at least 3" in answer.err
