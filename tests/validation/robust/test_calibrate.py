"""Calibration measures noise: tolerances follow it, and a change of the code is none."""

from dataclasses import replace
from random import Random

import pytest

from validation.calibrate import FLOOR, SAFETY, Variant, measure, tolerances_from, unchanged_base
from validation.compare import Tolerances, compare
from validation.goldens import Golden
from validation.trace import Trace

from .traces import random_trace, tolerances_of


def noisy(trace: Trace, seed: int, size: float = 1e-7) -> Trace:
    """The loss moves by noise that grows with the step; nothing else moves."""
    random = Random(seed)
    loss = {
        step: value * (1 + size * 3**step * random.uniform(-1, 1))
        for step, value in trace.curves["lm_loss"].items()
    }
    return replace(trace, curves={**trace.curves, "lm_loss": loss})


def test_tolerances_grow_with_the_noise_and_exact_classes_stay_exact() -> None:
    trace = random_trace(1)
    seeds = iter(range(100))
    tolerances, lines = measure(
        trace,
        lambda _: noisy(trace, next(seeds)),
        [Variant(str(n)) for n in range(8)],
        lambda _: None,
    )
    assert len(lines) == 8
    assert tolerances.of("curve:grad_norm", 3) == 0.0
    steps = [tolerances.of("curve:lm_loss", step) for step in range(1, 6)]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1] / 5
    for seed in range(1000, 1100):
        assert not compare(trace, noisy(trace, seed), tolerances).divergences
    biased = {s: v * 1.001 for s, v in trace.curves["lm_loss"].items()}
    moved = compare(
        trace, replace(trace, curves={**trace.curves, "lm_loss": biased}), tolerances
    ).divergences
    assert moved[0].step == 1


def test_tolerances_are_a_multiple_of_the_largest_noise_with_a_floor() -> None:
    tolerances = tolerances_from({"a": {1: 0.0, 2: 1e-9, 9: 1e-3}, "b": {1: 0.0}})
    assert tolerances.of("a", 1) == FLOOR
    assert tolerances.of("a", 9) == SAFETY * 1e-3
    assert tolerances.of("b", 1) == 0.0


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_changed_tree_is_not_noise(calibrated: bool) -> None:
    trace = replace(random_trace(1), provenance={"source_digest": "old"})
    golden = Golden(
        lane="cpu",
        trace=trace,
        case_digest="",
        accepted={},
        tolerances=tolerances_of(trace) if calibrated else Tolerances(),
    )
    assert unchanged_base(golden, "old", lambda _: random_trace(2)) is trace
    assert unchanged_base(golden, "new", lambda _: trace) is trace
    with pytest.raises(ValueError, match="accept the change first"):
        unchanged_base(golden, "new", lambda _: noisy(trace, 1, size=1e-2))


def test_a_setting_that_moves_a_fact_is_refused() -> None:
    trace = random_trace(1)
    other = replace(trace, tables={**trace.tables, "window/1": [[0, 9]]})
    with pytest.raises(ValueError, match="window/1"):
        measure(trace, lambda _: other, [Variant("two threads")], lambda _: None)
