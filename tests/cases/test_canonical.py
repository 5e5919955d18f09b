"""Tensors get the names and parts that every layout has; checkpoints are compared by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import nn

from validation.cases import discover_cases
from validation.running.recorder import Recorder
from validation.running.source import find_root
from validation.trace import HeldInvariant
from vpmoe.cases import canonical
from vpmoe.cases.canonical import CanonicalModel
from vpmoe.cases.moved import Checkpoint, Content
from vpmoe.megatron.shards import Shard

WEIGHT = torch.arange(24.0).reshape(4, 6)
EXPERTS = torch.arange(4 * 2 * 3.0).reshape(4, 2, 3)
Pieces = Sequence[tuple[str, tuple[int, ...], torch.Tensor, int | None]]
"""Whole tensor's name, offset, this rank's part (of one expert without its axis), sharded axis."""


def parts_of(
    monkeypatch: pytest.MonkeyPatch, pieces: Pieces, last: int | None = None
) -> Mapping[tuple[str, str], torch.Tensor]:
    """The parts of a rank that holds these pieces; of the state of a row where `last` is 1."""
    wholes = {"layer.weight": tuple(WEIGHT.shape), "experts.weight": tuple(EXPERTS.shape)}
    model, shards = nn.Module(), []
    for number, (key, offset, value, axis) in enumerate(pieces):
        parameter = nn.Parameter(value.clone())
        if axis is not None:
            parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
            parameter.partition_dim = axis  # type: ignore[attr-defined]
        model.register_parameter(f"own{number}", parameter)
        missing = len(wholes[key]) - value.ndim
        shape = (*[1] * missing, *value.shape)
        shards.append((Shard(key, wholes[key], offset, shape), parameter))
    monkeypatch.setattr(canonical, "shards_of", lambda chunks: shards)
    found = CanonicalModel([model])
    values = {
        number: tensor if last is None else tensor[..., :last]
        for number, tensor in found.parameters.items()
    }
    return {(key, place): tensor for key, place, tensor in found.parts(values)}


def one_process(monkeypatch: pytest.MonkeyPatch) -> Mapping[tuple[str, str], torch.Tensor]:
    pieces: Pieces = [
        ("layer.weight", (0, 0), WEIGHT, 0),
        *(("experts.weight", (e, 0, 0), EXPERTS[e], 1) for e in range(4)),
    ]
    return parts_of(monkeypatch, pieces)


def test_one_process_has_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    found = one_process(monkeypatch)
    # The experts' sharded axis has three columns, which no two ranks share.
    assert set(found) == {
        ("layer.weight", "[0:2,:]"),
        ("layer.weight", "[2:4,:]"),
        ("experts.weight", "[0:2,:,:]"),
        ("experts.weight", "[2:4,:,:]"),
    }
    assert torch.equal(found["layer.weight", "[2:4,:]"], WEIGHT[2:])
    assert torch.equal(found["experts.weight", "[2:4,:,:]"], EXPERTS[2:])


@pytest.mark.parametrize("stacked", [False, True])
def test_a_rank_has_its_part_of_the_same_name(
    stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts: Pieces = [("experts.weight", (e, 0, 0), EXPERTS[e], 1) for e in (2, 3)]
    if stacked:
        experts = [("experts.weight", (2, 0, 0), EXPERTS[2:], 2)]
    found = parts_of(monkeypatch, [("layer.weight", (2, 0), WEIGHT[2:], 0), *experts])
    whole = one_process(monkeypatch)
    assert set(found) == {("layer.weight", "[2:4,:]"), ("experts.weight", "[2:4,:,:]")}
    assert all(torch.equal(value, whole[place]) for place, value in found.items())


def test_a_state_of_rows_is_cut_as_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    by_columns: Pieces = [("layer.weight", (0, 3), WEIGHT[:, 3:], 1)]
    (place,) = parts_of(monkeypatch, by_columns, last=1)
    assert place == ("layer.weight", "")
    by_rows: Pieces = [("layer.weight", (2, 0), WEIGHT[2:], 0)]
    (place,) = parts_of(monkeypatch, by_rows, last=1)
    assert place == ("layer.weight", "[2:4,:]")


def test_what_cannot_be_compared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"layer\.weight: 0:1 of 4 on axis 0 is finer than"):
        parts_of(monkeypatch, [("layer.weight", (0, 0), WEIGHT[:1], 0)])
    with pytest.raises(ValueError, match=r"experts.weight: .* no connected part"):
        parts_of(monkeypatch, [("experts.weight", (e, 0, 0), EXPERTS[e], None) for e in (0, 3)])
    monkeypatch.setattr(canonical, "shards_of", lambda chunks: [])
    with pytest.raises(ValueError, match="weight: the model's sharded state does not have"):
        CanonicalModel([nn.Linear(2, 2, bias=False)])


SAVED = Content(
    {("layer", "weight.value[0:2]"): "a", ("layer", "weight.exp_avg"): "b"},
    {"data/iteration": 1, "schedule/num_steps": 4},
    (1, 2),
    {(0, 0): "x", (0, 1): "y"},
)


def broken(loaded: Content, with_optimizer: bool = True) -> list[tuple[str, str]]:
    recorder = Recorder(rank=1)
    Checkpoint(recorder, with_optimizer)._compare(SAVED, loaded, 1)
    return [
        (event.key.module, event.key.tensor)
        for event in recorder.trace("moved", {}).events
        if isinstance(event.value, HeldInvariant) and not event.value.holds
    ]


def test_what_was_loaded_is_what_was_saved() -> None:
    part = {("layer", "weight.exp_avg"): "b"}
    assert not broken(Content(part, SAVED.facts, (1, 2), {(0, 1): "y"}))
    # Random states start anew where a rank has another place in the model.
    assert not broken(Content(part, SAVED.facts, (2, 1), {(1, 0): "z"}))


def test_what_was_not_loaded_is_named() -> None:
    tensors = {("layer", "weight.value[0:2]"): "a", ("layer", "weight.exp_avg"): "c"}
    facts = {**SAVED.facts, "schedule/num_steps": 0}
    loaded = Content(tensors, facts, (1, 2), {(0, 1): "x"})
    expected = [("schedule/num_steps", "fact"), ("layer", "weight.exp_avg"), ("random", "states")]
    assert broken(loaded) == expected
    # Without the optimizer neither its state nor the schedule is expected to be there.
    assert broken(loaded, with_optimizer=False) == [("random", "states")]
    other = Content({("other", "weight.value"): "a"}, SAVED.facts, (1, 2), {(0, 0): "x"})
    assert broken(other) == [("other", "weight.value")]


def test_a_checkpoint_that_was_never_saved_is_refused() -> None:
    with (
        pytest.raises(RuntimeError, match="saved none"),
        Checkpoint(Recorder(), with_optimizer=True).loaded(),
    ):
        pass


def test_every_layout_is_held_to_one_process() -> None:
    cases = discover_cases(find_root())
    shared = [case for case in cases.values() if case.invariant and case.invariant.shards]
    assert {case.processes for case in shared} == {2, 4}
    for case in shared:
        assert case.invariant is not None
        reference = cases[case.invariant.reference]
        assert (reference.processes, reference.lanes) == (1, case.lanes)
        assert set(case.traced_steps) <= set(reference.traced_steps)


def test_a_recorder_without_steps_shares_its_records() -> None:
    recorder = Recorder(steps=(1,))
    other = recorder.without_steps()
    for number, each in enumerate((recorder, other)):
        each.curve(1, f"metric{number}", 1.0)
        for step in (0, 1):
            each.tensor(
                step=step,
                micro_batch=0,
                phase="init",
                module=f"m{number}",
                tensor="t",
                value=torch.ones(2),
            )
    trace = recorder.trace("run", {})
    assert [(e.key.module, e.key.step) for e in trace.events] == [("m0", 0), ("m0", 1), ("m1", 0)]
    assert len(trace.curves) == 2
