"""Calibration measures noise: tolerances follow it, and a change of the code is none."""

import math
from dataclasses import replace
from random import Random

import pytest

from validation.calibrate import (
    CLIPPED_FLOOR,
    FLOOR,
    Variant,
    detectable_effect,
    measure,
    tolerances_from,
    unchanged_base,
)
from validation.compare import Tolerances, compare
from validation.goldens import Golden
from validation.noise import LARGEST_SAFETY, SMALLEST_SAFETY, spread_of
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


def test_tolerances_grow_with_the_noise_and_quiet_classes_have_the_floor() -> None:
    trace = random_trace(1)
    seeds = iter(range(100))
    measured = measure(
        trace,
        lambda _: noisy(trace, next(seeds)),
        [Variant(str(n)) for n in range(8)],
        lambda _: None,
    )
    tolerances = measured.tolerances
    assert len(measured.lines) == 8
    assert tolerances.of("curve:grad_norm", 3) == CLIPPED_FLOOR
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
    tolerances = tolerances_from({"a": {1: 0.0, 2: 1e-9, 9: 1e-3}, "b": {1: 0.0}}, 5.0)
    assert tolerances.of("a", 1) == FLOOR
    assert tolerances.of("a", 9) == 5.0 * 1e-3
    assert tolerances.of("b", 1) == FLOOR
    clipped = {name: {1: 0.0} for name in ("curve:grad_norm@#", "optimizer:w.update", "curve:loss")}
    found = tolerances_from(clipped, 5.0)
    assert [found.of(name, 1) for name in clipped] == [CLIPPED_FLOOR, CLIPPED_FLOOR, FLOOR]


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


def test_a_detectable_bias_is_detected_with_the_stated_power() -> None:
    trace = random_trace(1)
    seeds = iter(range(100))
    measured = measure(
        trace,
        lambda _: noisy(trace, next(seeds), 1e-5),
        [Variant(str(n)) for n in range(8)],
        lambda _: None,
    )
    effect = detectable_effect(trace, measured)["lm_loss"]
    assert effect > 0.0
    seen = 0
    for seed in range(1000, 1200):
        fresh = noisy(trace, seed, 1e-5)
        biased = {s: v * (1 + effect) for s, v in fresh.curves["lm_loss"].items()}
        biased_trace = replace(fresh, curves={**fresh.curves, "lm_loss": biased})
        seen += bool(compare(trace, biased_trace, measured.tolerances).divergences)
    assert seen >= 180


@pytest.mark.parametrize("tail", [0.2, 0.5])
def test_the_false_alarm_bound_holds_for_exponential_tails(tail: float) -> None:
    """Noise whose logarithm has an exponential tail, in forty classes of twelve reruns."""
    random = Random(7)

    def run() -> dict[str, dict[int, float]]:
        return {f"c{n}": {1: 1e-3 * math.exp(random.expovariate(1 / tail))} for n in range(40)}

    alarms = trials = 0
    for _ in range(20):
        runs = [run() for _ in range(12)]
        spread = spread_of(runs, FLOOR)
        assert SMALLEST_SAFETY <= spread.safety <= LARGEST_SAFETY
        for _ in range(50):
            fresh = run()
            trials += 1
            alarms += any(
                steps[1] > spread.safety * max(r[name][1] for r in runs)
                for name, steps in fresh.items()
            )
        assert spread.bound <= 0.0101 or spread.safety == LARGEST_SAFETY
    assert alarms / trials <= 0.02


def test_two_reruns_say_nothing_about_false_alarms() -> None:
    assert spread_of([{"a": {1: 1e-3}}, {"a": {1: 2e-3}}], FLOOR).bound == 1.0
    assert spread_of([{"a": {1: 0.0}}] * 3, FLOOR).bound == 0.0
