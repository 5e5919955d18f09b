"""What counts as caught, and by what margin: the same for check, faults and rebase."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from validation.compare import Tolerances, compare
from validation.trace import CurveKey, Event, HeldInvariant, Key, TableKey, Trace

TOLERANCE = 1e-3
ALLOWED = Tolerances({"curve:lm_loss": {0: TOLERANCE}, "curve:grad_norm": {0: TOLERANCE}})
TRACE = Trace(
    case="tiny",
    events=[
        Event(Key(1, 0, "data", "batch", "tokens"), [1, 2, 3]),
        Event(Key(1, 0, "forward", "m", "law"), {"law": "shift", "holds": True, "error": 0.0}),
    ],
    curves={CurveKey("lm_loss"): {1: 2.0, 2: 1.0}, CurveKey("grad_norm"): {1: 1.0}},
    curve_phases={CurveKey("lm_loss"): "forward", CurveKey("grad_norm"): "reduction"},
    tables={TableKey("window"): [[0, 1], [1, 2]]},
)


def caught(**changed: Any) -> Any:
    return compare(TRACE, replace(TRACE, **changed), ALLOWED).caught


@given(st.floats(0.0, 1e3))
def test_the_margin_is_error_over_tolerance_of_the_worst_record(ratio: float) -> None:
    value = 1.0 + ratio * TOLERANCE
    catch = caught(curves={**TRACE.curves, CurveKey("grad_norm"): {1: value}})
    expected = (value - 1.0) / TOLERANCE
    assert (catch is not None) == (expected > 1)
    if catch is not None:
        assert catch.margin == pytest.approx(expected)
        assert catch.place == "training.grad_norm"


def test_the_deciding_divergence_is_the_first_and_the_margin_the_largest() -> None:
    catch = caught(curves={CurveKey("lm_loss"): {1: 2.02, 2: 3.0}, CurveKey("grad_norm"): {1: 1.0}})
    assert catch.first.step == 1
    assert catch.margin == pytest.approx(2.0 / TOLERANCE)


@pytest.mark.parametrize(
    "changed",
    [
        {"events": [replace(TRACE.events[0], value=[1, 2, 4]), TRACE.events[1]]},
        {"events": [replace(TRACE.events[0], value=[1, 2]), TRACE.events[1]]},  # a token is lost
        {"events": [replace(TRACE.events[0], value=[1, 2, 3, 4]), TRACE.events[1]]},
        {
            "events": [
                TRACE.events[0],
                replace(
                    TRACE.events[1], value=HeldInvariant("s", holds=False, error="1.0", bound=0)
                ),
            ]
        },
        {"tables": {TableKey("window"): [[0, 1], [1, 3]]}},
        {"tables": {TableKey("window"): [[0, 1]]}},
        {"curves": {**TRACE.curves, CurveKey("grad_norm"): {1: math.nan}}},
    ],
)
def test_a_fact_a_law_a_table_and_a_nan_have_no_finite_margin(changed: dict[str, Any]) -> None:
    assert caught(**changed).margin == math.inf


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"events": []},
        {"events": [*TRACE.events, Event(Key(1, 0, "data", "batch", "more"), [1])]},
        {"curves": {}},
        {"curves": {CurveKey("lm_loss"): {1: 2.0}, CurveKey("grad_norm"): {1: 1.0}}},
        {"tables": {}},
        {"tables": {**TRACE.tables, TableKey("other"): [[0, 1]]}},
    ],
)
def test_a_record_of_one_side_only_proves_nothing(changed: dict[str, Any]) -> None:
    assert caught(**changed) is None
