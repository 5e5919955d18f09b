"""Laws between two runs: what is held to what, and that nothing slips through."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from validation.cases import Invariant
from validation.compare import compare, compare_invariant
from validation.running.recorder import Recorder
from validation.trace import CurveKey, Trace


def straight(scale: float = 1.0, steps: range = range(1, 5)) -> Trace:
    """A run with two metrics and a traced step."""
    recorder = Recorder(steps=(2,))
    for step in steps:
        recorder.curve(step, "lm_loss", 10.0 * scale - step)
        recorder.curve(step, "grad_norm", 2.0 * scale)
        generator = torch.Generator().manual_seed(step)
        value = torch.randn(7, generator=generator) * scale
        recorder.tensor(
            step=step, micro_batch=0, phase="forward", module="layer", tensor="out", value=value
        )
    return recorder.trace("run", {})


LAW = Invariant(reference="straight", curves={"lm_loss": 1e-6, "grad_norm": 1e-6}, events=0.0)


def test_a_resumed_run_is_held_at_its_own_steps() -> None:
    held = compare_invariant(LAW, straight(), straight(steps=range(2, 5)))
    assert not held.divergences
    assert held.compared == held.identical == 2 * 3 + 1


def test_a_metric_off_by_more_than_the_law_allows() -> None:
    held = compare_invariant(LAW, straight(), straight(1 + 1e-5, steps=range(3, 5)))
    first = held.divergences[0]
    assert (first.step, first.module, first.tensor) == (3, "training", "grad_norm")
    assert first.tolerance == 1e-6


def test_tensors_are_held_to_the_law() -> None:
    moved = straight(steps=range(2, 5))
    events = [replace(e, value=replace(e.value, digest="other")) for e in moved.events]
    held = compare_invariant(LAW, straight(), replace(moved, events=events))
    assert [d.tensor for d in held.divergences] == ["out"]


def test_every_rank_is_held_and_one_may_hold_it_all() -> None:
    whole = straight()
    metrics = whole.curves
    last_rank = {replace(key, rank=1): series for key, series in metrics.items()}
    law = replace(LAW, events=None)
    assert not compare_invariant(
        law, whole, replace(whole, curves=last_rank, events=())
    ).divergences
    both = {
        **metrics,
        CurveKey("lm_loss", 1): {s: v + 1 for s, v in metrics[CurveKey("lm_loss")].items()},
    }
    held = compare_invariant(law, whole, replace(whole, curves=both, events=()))
    assert held.divergences[0].tensor == "lm_loss"
    assert held.divergences[0].rank == 1


@pytest.mark.parametrize("gone", ["lm_loss", "grad_norm"])
def test_a_missing_metric_breaks_the_law(gone: str) -> None:
    run = straight(steps=range(2, 5))
    curves = {name: series for name, series in run.curves.items() if name.metric != gone}
    held = compare_invariant(LAW, straight(), replace(run, curves=curves))
    assert {d.tensor for d in held.divergences} == {gone}


def test_a_pattern_without_a_metric_and_an_empty_run_break_the_law() -> None:
    law = Invariant(reference="straight", curves={"aux/*": 1.0})
    assert compare_invariant(law, straight(), straight()).divergences
    assert compare_invariant(LAW, straight(), Trace("run")).divergences


def test_a_missing_event_breaks_the_law() -> None:
    run = straight(steps=range(2, 5))
    recorder = Recorder(steps=(2,))
    recorder.tensor(
        step=2, micro_batch=0, phase="forward", module="other", tensor="out", value=torch.ones(3)
    )
    held = compare_invariant(LAW, straight(), replace(run, events=recorder.trace("run", {}).events))
    assert held.divergences[0].module == "layer"


def test_nan_never_holds() -> None:
    run = straight(steps=range(2, 5))
    curves = {**run.curves, CurveKey("lm_loss"): dict.fromkeys((2, 3, 4), float("nan"))}
    law = replace(LAW, curves={"lm_loss": 1e9})
    assert compare_invariant(law, replace(straight(), curves=curves), replace(run, curves=curves))
    assert compare_invariant(law, straight(), replace(run, curves=curves)).divergences


def recorded(error: float, bound: float = 1e-6) -> Trace:
    recorder = Recorder()
    recorder.invariant("model", "shift", error, bound)
    return recorder.trace("run", {})


@pytest.mark.parametrize("error", [1.0, float("nan"), float("inf")])
def test_a_broken_invariant_fails_even_if_the_golden_has_it_so(error: float) -> None:
    broken = recorded(error)
    (first,) = compare(broken, broken).divergences
    assert (first.module, first.tensor) == ("model", "law")
    assert first.expected == "shift holds"
    assert str(error) in str(first.actual)


def test_a_law_that_holds_does_not_record_by_how_much() -> None:
    held = compare(recorded(0.0), recorded(1e-7))
    assert not held.divergences
    assert held.identical == held.compared == 1
    assert compare(recorded(0.0), recorded(1e-5)).divergences
