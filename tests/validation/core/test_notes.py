"""Grains and counts travel from every rank's recorder to calibration, and are not compared."""

from dataclasses import replace

import pytest
import torch

from validation.compare import compare
from validation.running.execution import merge_ranks
from validation.running.notes import grains_of, longest_sum_of, shaken
from validation.running.recorder import Recorder
from validation.trace import Trace


def run(rank: int, grain: float | None, counts: tuple[int, int] | None = None) -> Trace:
    recorder = Recorder(rank, steps=(1,))
    recorder.curve(1, "update_rms/norm", 0.5, "optimizer", grain=grain)
    for layer in (0, 1):
        recorder.tensor(
            step=1,
            micro_batch=0,
            phase="optimizer",
            module=f"layer.{layer}",
            tensor="weight.update",
            value=torch.ones(3, 5),
            grain=None if grain is None else grain * (layer + 1),
        )
    recorder.tensor(
        step=2,
        micro_batch=0,
        phase="optimizer",
        module="m",
        tensor="t",
        value=torch.ones(1),
        grain=9.0,
    )
    if counts:
        recorder.note("arithmetic", {"largest_sum": counts[0], "shaken": counts[1]})
    return recorder.trace("case", {"source_digest": "a"})


def test_a_grain_is_kept_by_class_and_step() -> None:
    found = grains_of([run(0, 1e-4), run(0, 1e-5)])
    assert found == {
        "curve:update_rms/norm": {1: 1e-4},
        "optimizer:layer.#.weight.update": {1: 2e-4},
    }
    assert grains_of([run(0, None), run(0, float("inf"))]) == {}
    assert not compare(run(0, 1e-4), run(0, None)).divergences


def test_ranks_are_merged() -> None:
    merged = merge_ranks([run(0, 1e-5, (10, 3)), run(1, 1e-4, (20, 4))])
    assert longest_sum_of([merged]) == 20
    assert shaken(merged) == 7
    assert grains_of([merged]) == {
        "curve:update_rms/norm": {1: 1e-5},
        "curve:update_rms/norm@#": {1: 1e-4},
        "optimizer:layer.#.weight.update": {1: 2e-4},
    }
    assert merged.provenance["source_digest"] == "a"


@pytest.mark.parametrize("provenance", [{}, {"notes": []}, {"notes": {"arithmetic": 3}}])
def test_without_counts_no_sum_is_longer_than_the_largest_tensor(
    provenance: dict[str, object],
) -> None:
    trace = replace(run(0, None), provenance=provenance)
    assert longest_sum_of([trace]) == 15
    assert shaken(trace) == 0
    assert longest_sum_of([trace, run(0, None, (7, 1))]) == 7
    assert longest_sum_of([replace(trace, events=())]) == 1
