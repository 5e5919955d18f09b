"""The tiny vpMoE's real training, paced, and what a case's declaration leaves as it was."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

import validation.cases.vpmoe.faults.throughput as slowdowns
from validation.cases import discover_cases, discover_faults, discover_throughput_faults
from validation.throughput.session import SIDES, SessionPlan, open_session
from validation.throughput.telemetry import CpuWatch
from vpmoe.runtime import detect_lane


def test_throughput_changes_no_digest() -> None:
    case = discover_cases()["tiny_moe"]
    assert case.throughput
    assert replace(case, throughput=None).digest == case.digest


def test_planted_slowdowns_are_no_faults_of_a_check() -> None:
    slow = discover_throughput_faults()
    assert {"slow-step-1", "slow-step-3"} <= set(slow)
    assert not set(slow) & set(discover_faults())
    assert not any(fault.canary for fault in slow.values())


@pytest.mark.skipif("VPMOE_RUN_SLOW" not in os.environ, reason="a minute: VPMOE_RUN_SLOW=1")
def test_both_sides_train_the_same_steps(repository: Path, tmp_path: Path) -> None:
    case = discover_cases()["tiny_moe"]
    plan = SessionPlan(
        case=case,
        lane="cpu",
        trees={"base": repository, "head": repository},
        logs=tmp_path,
        fault=discover_throughput_faults()["slow-step-3"].plant,
        block_seconds=0.01,
    )
    with open_session(plan, CpuWatch()) as session:
        session.warm_up()
        quad = session.quad()
        profiled = session.quad(profiled=True)
    assert session.block_steps == 1
    for block in quad.blocks:
        assert block.tokens == 2 * 64
        assert 0 < block.optimizer_seconds < block.seconds
        assert block.peak_bytes > 2**28
    facts = session.facts["head"]
    # 2 x 201,088 x 64 of embeddings, of which the input's are not multiplied with.
    assert 12_869_632 < facts["active_parameters"] < facts["parameters"] - 12_869_632
    assert facts["flops_per_token"] > 6 * facts["active_parameters"]
    assert all((block.operators or {})["aten::mm"] > 0 for block in profiled.blocks)
    for side in SIDES:
        assert "iteration" in (tmp_path / f"{side}.log").read_text()


def test_a_slowdown_is_counted_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with detect_lane().activate():
        import megatron.training.training as training

    seconds_of_a_step: list[float] = []
    counts: list[int] = []

    def products(seconds: float) -> float:
        seconds_of_a_step.append(seconds)
        return 200.0

    monkeypatch.setattr(slowdowns, "_products", products)
    monkeypatch.setattr(slowdowns, "_multiply", counts.append)
    monkeypatch.setattr(training, "train_step", lambda step: step)
    with slowdowns.slow_step_3():
        assert [training.train_step(step) for step in range(10)] == list(range(10))
    assert len(seconds_of_a_step) == 1
    assert counts == [6, 6, 6, 6]
