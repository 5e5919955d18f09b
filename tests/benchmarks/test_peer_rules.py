"""Peers' rules: what their sources say of a curve, and what is known to slip through them."""

from __future__ import annotations

import math

import pytest

from benchmarks.peer_rules import (
    RULES,
    megatron_accepts,
    megatron_before_4238_accepts,
    torchtitan_accepts,
)

GOLDEN = {step: 10.0 - 0.1 * step + 1e-7 * step for step in range(1, 51)}


def changed(**at: float) -> dict[int, float]:
    return GOLDEN | {int(step.removeprefix("s")): value for step, value in at.items()}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_accepts_the_same_run(rule: object) -> None:
    assert rule.accepts(GOLDEN, dict(GOLDEN))  # type: ignore[attr-defined]


def test_the_approximate_rule_passes_what_is_known_to_pass_it() -> None:
    biased = {step: value * 1.049 for step, value in GOLDEN.items()}
    assert megatron_accepts(GOLDEN, biased, approximate=True)
    assert megatron_accepts(GOLDEN, changed(s7=1e9), approximate=True)
    assert not megatron_accepts(GOLDEN, changed(s7=1e9, s8=1e9), approximate=True)
    missing = {step: value for step, value in GOLDEN.items() if step != 9}
    assert megatron_accepts(GOLDEN, missing, approximate=True)
    assert not megatron_accepts(GOLDEN, biased, approximate=False)


def test_the_inverted_rule_wanted_one_right_step() -> None:
    wrong = {step: value * 3 for step, value in GOLDEN.items()}
    assert not megatron_before_4238_accepts(GOLDEN, wrong, approximate=True)
    assert megatron_before_4238_accepts(
        GOLDEN, wrong | {1: GOLDEN[1], 2: GOLDEN[2]}, approximate=True
    )


def test_printed_losses_are_compared_exactly() -> None:
    assert torchtitan_accepts(GOLDEN, changed(s3=GOLDEN[3] + 1e-9))
    assert not torchtitan_accepts(GOLDEN, changed(s3=GOLDEN[3] + 1e-4))
    assert not torchtitan_accepts(GOLDEN, changed(s3=math.nan))
