"""The tiny vpMoE's real training, paced, and what a case's declaration leaves as it was."""

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vpmoe.cases.faults.throughput as slowdowns
from validation.cases import discover_cases, discover_faults, discover_throughput_faults
from validation.running.source import find_root
from validation.throughput.session import SIDES, SessionPlan, open_session
from validation.throughput.telemetry import CpuWatch
from vpmoe.runtime import detect_lane


def test_throughput_changes_no_digest() -> None:
    case = discover_cases(find_root())["tiny_moe"]
    assert case.throughput
    assert replace(case, throughput=None).digest == case.digest


def test_planted_slowdowns_are_no_faults_of_a_check() -> None:
    slow = discover_throughput_faults(find_root())
    assert {"slow-step-1", "slow-step-3"} <= set(slow)
    assert not set(slow) & set(discover_faults(find_root()))
    assert not any(fault.canary for fault in slow.values())


@pytest.mark.skipif("VPMOE_RUN_SLOW" not in os.environ, reason="a minute: VPMOE_RUN_SLOW=1")
def test_both_sides_train_the_same_steps(repository: Path, tmp_path: Path) -> None:
    case = discover_cases(find_root())["tiny_moe"]
    plan = SessionPlan(
        case=case,
        lane="cpu",
        trees={"base": repository, "head": repository},
        logs=tmp_path,
        fault=discover_throughput_faults(find_root())["slow-step-3"].plant,
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

    counts: list[int] = []

    class Products:
        """A step takes as long as 200 of them."""

        def seconds(self) -> float:
            return 0.01

        def queue(self, count: int) -> None:
            counts.append(count)

    def train_step(
        forward_step_func: Any,
        data_iterator: Any = None,
        model: Any = None,
        optimizer: Any = None,
        opt_param_scheduler: Any = None,
        *,
        iteration: int = 0,
    ) -> Any:
        return forward_step_func

    clock = itertools.count(step=2)  # read twice a step
    monkeypatch.setattr(slowdowns, "_Products", Products)
    monkeypatch.setattr(slowdowns.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(training, "train_step", train_step)
    with slowdowns.slow_step_3():
        assert [training.train_step(step) for step in range(12)] == list(range(12))
    # After the eight steps of a benchmark's warm-up.
    assert counts == [6, 6, 6, 6]
