"""From blocks to figures and verdicts, without training anything."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from validation.gate.verdict import Verdict
from validation.throughput.bench import decide, judge_quads
from validation.throughput.figures import figures_of, operator_changes
from validation.throughput.session import Block, Quad
from validation.throughput.statistics import judge


def block(side: str, seconds: float, **more: Any) -> Block:
    """Two steps of a hundred tokens each."""
    values = {
        "began": 0.0,
        "steps": 2,
        "laps": [seconds / 2, seconds / 2],
        "tokens": 200,
        "peak_bytes": 1000,
        "reference_seconds": 0.01,
        "optimizer_seconds": seconds / 4,
    }
    return Block(side=side, seconds=seconds, **{**values, **more})


@given(
    st.sampled_from([("base", "head", "head", "base"), ("head", "base", "base", "head")]),
    st.floats(-0.2, 0.2),
    st.floats(0.5, 2.0),
)
def test_drift_cancels_within_a_quad(order: tuple[str, ...], drift: float, ratio: float) -> None:
    blocks = [
        block(side, math.exp(drift * place) * (ratio if side == "head" else 1.0))
        for place, side in enumerate(order)
    ]
    assert Quad(blocks).effect == pytest.approx(math.log(ratio), abs=1e-9)


def test_figures_are_those_of_the_median_block() -> None:
    facts = {"environment": {"device": "NVIDIA H200"}, "flops_per_token": 989.4e9}
    blocks = [block("head", seconds) for seconds in (1.0, 2.0, 9.0)]
    figures = figures_of(blocks, facts)
    assert figures.step_seconds == 1.0
    assert figures.tokens_per_second == 100
    assert figures.mfu == pytest.approx(0.1)
    assert (figures.peak_bytes, figures.optimizer_share) == (1000, 0.25)
    assert figures.relative_cost == pytest.approx(100)
    assert figures_of(blocks, {"environment": {"device": "a CPU"}}).mfu is None


def test_operators_are_told_by_what_they_cost_more() -> None:
    changes = operator_changes(
        [
            block("base", 1.0, operators={"mm": 0.4, "gone": 0.2, "copy": 0.1}),
            block("head", 1.0, operators={"mm": 0.6, "new": 0.4, "copy": 0.1}),
            block("head", 1.0, operators={"mm": 0.6, "new": 0.4, "copy": 9.9}),
            block("head", 1.0, operators={"mm": 0.6, "new": 0.4, "copy": 0.1}),
        ]
    )
    assert [(c.name, round(c.difference, 6)) for c in changes] == [
        ("new", 0.2),
        ("mm", 0.1),
        ("copy", 0.0),
        ("gone", -0.1),
    ]
    assert changes[0].base is None


def test_a_steps_hiccup_is_seen_in_the_block_and_not_in_the_median() -> None:
    """One step of five waits: its block takes longer, its median step does not."""
    steps = {"base": [0.1] * 5, "head": [0.1, 0.1, 0.2, 0.1, 0.1]}
    blocks = [
        block(side, sum(steps[side]), steps=5, laps=steps[side])
        for side in ("base", "head", "head", "base")
    ]
    assert Quad(blocks).effect == 0.0
    assert Quad(blocks).whole_effect == pytest.approx(math.log(1.2))
    step, whole = judge_quads([[Quad(blocks)] * 6] * 2)
    assert (step.slower, whole.slower) == (False, True)
    verdict, message = decide((step, whole), 1.0, 0.01, [])
    assert verdict is Verdict.FAIL
    assert message.startswith("blocks, waits included, are 20.00% slower")


def test_verdicts() -> None:
    same, slower = judge([[0.0, 0.001, -0.001] * 4]), judge([[0.05 + i / 1e4 for i in range(12)]])
    assert decide((same, same), 1.0, 0.01, []) == (Verdict.PASS, "")
    verdict, message = decide((slower, same), 1.0, 0.01, [])
    assert verdict is Verdict.FAIL
    assert "steps are 5.1" in message
    assert decide((slower, slower), 1.0, 0.01, ["hot"]) == (Verdict.UNFIT, "hot")
    assert decide((same, same), 1.02, 0.01, ["hot"])[0] is Verdict.FAIL
    assert decide((same, same), 0.5, 0.01, [])[0] is Verdict.PASS
