"""The test against brute force, its estimates, and its promises: level and power."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from validation.rates import lower_bound, upper_bound
from validation.throughput.statistics import (
    ALPHA,
    confidence_interval,
    detectable_effect,
    hodges_lehmann,
    judge,
    signed_rank_p,
)

EFFECTS = st.lists(st.floats(-1, 1), min_size=1, max_size=9)


@given(EFFECTS)
def test_p_is_the_share_of_sign_changes_that_are_as_large(effects: list[float]) -> None:
    values = np.array(effects)
    values = values[values != 0]
    if not values.size:
        assert signed_rank_p(np.array(effects)) == 1
        return
    size = np.abs(values)
    ranks = [(np.sum(size < x) + np.sum(size <= x) + 1) / 2 for x in size]
    observed = sum(r for r, v in zip(ranks, values, strict=True) if v > 0)
    sums = [
        sum(r for r, positive in zip(ranks, signs, strict=True) if positive)
        for signs in itertools.product((False, True), repeat=len(ranks))
    ]
    expected = sum(s >= observed for s in sums) / len(sums)
    assert signed_rank_p(np.array(effects)) == pytest.approx(expected, abs=1e-12)


@given(EFFECTS, st.floats(-0.5, 0.5), st.floats(0.1, 10))
def test_the_estimate_moves_and_scales_with_the_values(
    effects: list[float], shift: float, scale: float
) -> None:
    values = np.array(effects)
    moved = hodges_lehmann(values * scale + shift)
    assert moved == pytest.approx(hodges_lehmann(values) * scale + shift, abs=1e-9)
    low, high = confidence_interval(values)
    assert low <= hodges_lehmann(values) <= high


def test_levels_hold_where_nothing_changed() -> None:
    generator = np.random.default_rng(5)
    runs = 3000
    for draw in (
        lambda: generator.standard_t(2, 20) * 0.01,
        lambda: generator.normal(0, 0.01, 20) * generator.exponential(size=20),
    ):
        samples = [draw() for _ in range(runs)]
        alarms = sum(signed_rank_p(sample) < ALPHA for sample in samples)
        assert lower_bound(alarms, runs) < ALPHA
        covered = 0
        for sample in samples[:1000]:
            low, high = confidence_interval(sample)
            covered += low <= 0 <= high
        assert upper_bound(covered, 1000) >= 0.95


def test_the_detectable_effect_is_found_with_the_stated_power() -> None:
    generator = np.random.default_rng(6)
    measured = generator.normal(0, 0.01, 30)
    effect = detectable_effect(measured, min_effect=0.003)
    assert effect is not None
    found = sum(
        judge([list(generator.normal(effect, measured.std(), 30))]).slower for _ in range(300)
    )
    assert 0.8 < found / 300 < 0.99
    # More of the same find less.
    longer = detectable_effect(np.tile(measured, 4), min_effect=0.0)
    assert longer is not None
    assert 0.3 * effect < longer < 0.7 * effect


def test_few_quads_prove_nothing() -> None:
    judgement = judge([[1.0] * 7])
    assert not judgement.slower
    assert judgement.detectable is None
    assert judge([[1.0] * 8]).slower
    assert judge([[0.1] * 3]).high == math.inf


def test_a_certain_but_small_slowdown_is_no_alarm() -> None:
    effects = [0.002 + 1e-5 * i for i in range(30)]
    judgement = judge([effects])
    assert judgement.p < 1e-6
    assert not judgement.slower
    assert judge([effects], min_effect=0.001).slower
    assert not judge([[-e for e in effects]], min_effect=0.0).slower


def test_disturbed_quads_do_not_hide_a_slowdown() -> None:
    generator = np.random.default_rng(7)
    effects = generator.normal(0.03, 0.01, 30)
    effects[[3, 17]] -= 2.0
    assert judge([list(effects)]).slower


def test_what_one_start_alone_has_is_a_property_of_its_processes() -> None:
    """2 % slower for as long as they lived, and not at all in the other start."""
    generator = np.random.default_rng(8)
    slow, same = (list(generator.normal(centre, 0.002, 15)) for centre in (0.02, 0.0))
    assert judge([slow, slow]).slower
    judgement = judge([slow, same])
    assert judgement.p < 0.005
    assert judgement.ratio > 1.003
    assert not judgement.slower
    assert judgement.starts == pytest.approx([1.02, 1.0], abs=0.002)


@pytest.mark.parametrize("effects", [[], [math.nan], [0.0, math.inf]])
def test_nonsense_is_refused(effects: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        judge([effects])


def test_bounds_of_a_probability() -> None:
    assert upper_bound(0, 60) == pytest.approx(1 - 0.05 ** (1 / 60))
    assert lower_bound(20, 20) == pytest.approx(0.05 ** (1 / 20))
    assert (lower_bound(0, 5), upper_bound(5, 5)) == (0, 1)
