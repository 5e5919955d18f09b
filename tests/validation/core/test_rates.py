"""Bounds of counted rates: closed forms, and that they cover what they say."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation.rates import lower_bound, upper_bound


@settings(deadline=None)
@given(st.integers(1, 5000))
def test_nothing_seen_has_the_closed_form(runs: int) -> None:
    assert upper_bound(0, runs) == pytest.approx(1 - 0.05 ** (1 / runs))
    assert lower_bound(runs, runs) == pytest.approx(0.05 ** (1 / runs))
    assert lower_bound(0, runs) == 0.0
    assert upper_bound(runs, runs) == 1.0


def test_three_hundred_clean_runs() -> None:
    assert upper_bound(0, 300) == pytest.approx(0.00994, abs=1e-5)


@settings(deadline=None)
@given(st.integers(1, 60), st.data())
def test_a_bound_is_where_the_count_is_just_as_rare_as_it_says(
    runs: int, data: st.DataObject
) -> None:
    alarms = data.draw(st.integers(0, runs - 1))
    rate = upper_bound(alarms, runs)
    tail = sum(math.comb(runs, k) * rate**k * (1 - rate) ** (runs - k) for k in range(alarms + 1))
    assert tail == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize(("count", "runs", "confidence"), [(-1, 3, 0.9), (4, 3, 0.9), (1, 3, 1.0)])
def test_impossible_counts_are_refused(count: int, runs: int, confidence: float) -> None:
    for bound in (lower_bound, upper_bound):
        with pytest.raises(ValueError, match="between"):
            bound(count, runs, confidence)
