"""Laws between two runs: what is held to what, and that nothing slips through."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from validation.cases import Case, Invariant
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


# --- tensors that ranks share -----------------------------------------------------------------

SHARED = Invariant(
    reference="whole",
    curves={},
    shards={"init:*.value*": 0.0, "reduction:*.grad*": 1e-5, "optimizer:*.update": 1e-3},
)


def halves(
    ranks: dict[int, tuple[str, ...]], changed: dict[tuple[int, str], float] | None = None
) -> Trace:
    """A run whose ranks record the named tensors, some of them off by a factor."""
    events = []
    for rank, names in ranks.items():
        recorder = Recorder(rank=rank, steps=(1,))
        for name in names:
            step, phase = {"value": (0, "init"), "grad": (1, "reduction")}.get(
                name.partition("[")[0].rpartition(".")[2], (1, "optimizer")
            )
            value = torch.arange(1.0, 9.0) * (changed or {}).get((rank, name), 1.0)
            recorder.tensor(
                step=step, micro_batch=0, phase=phase, module="layer", tensor=name, value=value
            )
        recorder.curve(1, "lm_loss", 1.0)
        events += recorder.trace("run", {}).events
    return replace(recorder.trace("run", {}), events=events)


NAMES = ("weight.value", "weight.grad[0:2]", "weight.grad[2:4]", "weight.update")
WHOLE = halves({0: NAMES})
# One shards a gradient; both have a copy of the rest.
SPLIT = {
    0: ("weight.value", "weight.grad[0:2]", "weight.update"),
    1: ("weight.value", "weight.grad[2:4]", "weight.update"),
}


def test_shards_and_copies_are_held_to_the_whole_run() -> None:
    held = compare_invariant(SHARED, WHOLE, halves(SPLIT))
    assert not held.divergences
    assert held.compared == held.identical == 6
    # Not on one rank alone, and in other ranks' order.
    swapped = {0: SPLIT[1], 1: SPLIT[0]}
    assert not compare_invariant(SHARED, WHOLE, halves(swapped)).divergences


@pytest.mark.parametrize(
    ("rank", "name", "factor"),
    [
        (0, "weight.grad[0:2]", 1 + 1e-4),
        (1, "weight.grad[2:4]", 2.0),
        (1, "weight.update", 1 + 1e-2),
        (0, "weight.value", 1 + 1e-6),
    ],
)
def test_a_shard_that_is_off_is_named_with_its_rank(rank: int, name: str, factor: float) -> None:
    held = compare_invariant(SHARED, WHOLE, halves(SPLIT, {(rank, name): factor}))
    first = held.divergences[0]
    assert (first.tensor, first.rank) == (name, rank)
    assert first.relative_error == pytest.approx(factor - 1, rel=0.5)


def test_within_the_bound_is_equal_but_copies_have_the_same_bits() -> None:
    slightly = 1 + 1e-4
    assert not compare_invariant(
        SHARED, WHOLE, halves(SPLIT, dict.fromkeys([(0, NAMES[3]), (1, NAMES[3])], slightly))
    ).divergences
    (only,) = compare_invariant(SHARED, WHOLE, halves(SPLIT, {(1, NAMES[3]): slightly})).divergences
    assert (only.tensor, only.rank, only.tolerance) == ("weight.update", 1, 0.0)
    assert "as rank 0 has it" in str(only.expected)


def test_a_shard_that_no_rank_has_breaks_the_law() -> None:
    lost = {0: SPLIT[0], 1: ("weight.value", "weight.update")}
    (only,) = compare_invariant(SHARED, WHOLE, halves(lost)).divergences
    assert (only.tensor, only.actual) == ("weight.grad[2:4]", "missing")
    more = {0: SPLIT[0], 1: (*SPLIT[1], "bias.update")}
    (only,) = compare_invariant(SHARED, WHOLE, halves(more)).divergences
    assert (only.tensor, only.rank, only.expected) == ("bias.update", 1, "missing")


def test_a_pattern_of_shards_that_fits_nothing_breaks_the_law() -> None:
    law = replace(SHARED, shards={**SHARED.shards, "optimizer:*.momentum": 1.0})
    (only,) = compare_invariant(law, WHOLE, halves(SPLIT)).divergences
    assert only.module == "optimizer:*.momentum"
    assert compare_invariant(SHARED, WHOLE, replace(halves(SPLIT), events=())).divergences


def test_the_digest_of_a_case_without_shards_is_what_it_was() -> None:
    case = Case(
        name="x",
        description="x",
        lanes=("cpu",),
        target="a:b",
        invariant=Invariant(reference="y", curves={}),
    )
    assert case.declared["law"] == {"reference": "y", "curves": {}, "events": None}
    sharing = replace(case, invariant=SHARED)
    assert sharing.declared["law"]["shards"] == SHARED.shards
