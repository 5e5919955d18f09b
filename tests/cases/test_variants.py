"""Variants: what is compared with what, under which names, and what the declarations must be."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from validation.running.recorder import Recorder
from validation.trace.model import HeldInvariant
from vpmoe.cases.declared import alternatives
from vpmoe.cases.named import Named
from vpmoe.cases.presets import small_flags
from vpmoe.cases.variants import Samples, Trained, compare, distance, record_tensors
from vpmoe.config import load_preset

WITHIN = {"losses": 1e-6, "gradients": 1e-5, "updates": 1e-4, "summed": 1e-2}


def part(name: str, shape: tuple[int, ...], shards: int = 1, shard: int = 0) -> Named:
    return Named(name, name, torch.nn.Parameter(torch.zeros(shape)), None, shards, shard)


def trained(parts: list[Named], values: dict[str, torch.Tensor]) -> Trained:
    keyed = {(1, name): value for name, value in values.items()}
    return Trained({1: 2.0}, keyed, {key: value / 2 for key, value in keyed.items()}, parts)


def broken(found: Trained, other: Trained, **variant: Any) -> dict[tuple[str, str], str]:
    """Module and tensor of the invariants that do not hold, and what they demand."""
    recorder = Recorder(rank=0, steps=[1])
    compare(recorder, "new", found, other, {"same_as": "plain", "within": WITHIN, **variant})
    events = recorder.trace("case", {}).events
    held = [(event.key, event.value) for event in events if isinstance(event.value, HeldInvariant)]
    assert held
    return {(k.module, k.tensor): v.name for k, v in held if not v.holds}


def test_a_rank_is_held_to_its_own_part_of_each_tensor() -> None:
    whole = torch.arange(12.0).view(4, 3)
    other = trained([part("a.weight", (4, 3))], {"a.weight": whole})
    mine = [part("a.weight", (2, 3), shards=2, shard=1)]
    assert broken(trained(mine, {"a.weight": whole[2:]}), other) == {}
    found = broken(trained(mine, {"a.weight": whole[:2]}), other)
    assert set(found) == {("new/a", "weight.grad"), ("new/a", "weight.update")}


def test_columns_and_replicated_tensors_are_found_by_their_shapes() -> None:
    whole = torch.arange(12.0).view(3, 4)
    assert torch.equal(part("w", (3, 2), 2, 1).cut(whole), whole[:, 2:])
    assert torch.equal(part("w", (3, 4), 2, 1).cut(whole), whole)
    stacked = torch.nn.Parameter(torch.zeros(5, 3, 2))
    assert torch.equal(Named("w", "w", stacked, 4, 2, 0).cut(whole), whole[:, :2])


def test_of_a_layers_experts_the_worst_one_counts() -> None:
    names = [f"mlp.experts.local_experts.{n}.linear_fc1.weight" for n in range(3)]
    values = {name: torch.ones(2, 2) for name in names}
    parts = [part(name, (2, 2)) for name in names]
    other = trained(parts, values)
    found = trained(parts, {**values, names[1]: torch.zeros(2, 2)})
    assert set(broken(found, other)) == {
        ("new/mlp.experts.local_experts.linear_fc1", "weight.grad"),
        ("new/mlp.experts.local_experts.linear_fc1", "weight.update"),
    }


def test_a_tensor_that_the_other_does_not_have_is_no_equal() -> None:
    found = trained([part("a", (2,))], {"a": torch.ones(2)})
    assert broken(found, trained([], {}))
    assert broken(found, trained([], {}), unlike=["a"]) == {}


def test_sums_in_another_order_have_a_bound_of_their_own() -> None:
    parts = [part("grapem.phi", (2,)), part("norm.weight", (2,))]
    values = {"grapem.phi": torch.ones(2), "norm.weight": torch.ones(2)}
    found = trained(parts, {name: value * 1.001 for name, value in values.items()})
    found.updates = trained(parts, values).updates
    left = broken(found, trained(parts, values), summed=["grapem.phi"])
    assert set(left) == {("new/norm", "weight.grad")}


def test_losses_are_compared_by_step() -> None:
    parts, values = [part("a", (2,))], {"a": torch.ones(2)}
    found = trained(parts, values)
    found.losses = {1: 2.0, 2: 3.0}
    other = trained(parts, values)
    other.losses = {1: 2.0, 2: 3.1}
    assert set(broken(found, other)) == {("new/model", "lm_loss")}
    assert broken(found, other, steps=1) == {}


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([1.0, 0.0], [1.0, 0.0], 0.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([1.0, 0.0], [0.0, 0.0], math.inf),
        ([math.nan, 0.0], [1.0, 0.0], math.inf),
        ([3.0, 4.0], [0.0, 4.0], 0.75),
    ],
)
def test_distance(found: list[float], expected: list[float], error: float) -> None:
    assert distance(torch.tensor(found), torch.tensor(expected)) == error


def test_distance_of_another_shape_is_infinite() -> None:
    assert distance(torch.ones(2), torch.ones(1, 2)) == math.inf


def test_a_layers_experts_are_recorded_together() -> None:
    names = [f"mlp.experts.local_experts.{n}.linear_fc1.weight" for n in range(3)]
    recorder = Recorder(rank=0, steps=[1])
    record_tensors(recorder, "own", trained([], {name: torch.ones(2, 2) for name in names}))
    events = recorder.trace("case", {}).events
    assert [(e.key.module, e.key.tensor, e.value.shape) for e in events] == [
        ("own/mlp.experts.local_experts.linear_fc1", "weight.grad", (3, 2, 2)),
        ("own/mlp.experts.local_experts.linear_fc1", "weight.update", (3, 2, 2)),
    ]


def test_samples_depend_on_their_index_alone_and_hold_two_documents() -> None:
    samples = Samples(4, 64, 512, seed=20)
    again = Samples(4, 64, 512, seed=20)
    for index in (3, 0, 1):
        one, other = samples[index], again[index]
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert one["document_ids"].unique().tolist() == [0, 1]
        assert int(one["position_ids"][one["document_ids"] == 1][0]) == 0
        assert 0 < float(one["loss_mask"].sum()) < 64
        assert int(one["tokens"].max()) < 512
    assert not torch.equal(samples[0]["tokens"], samples[1]["tokens"])


def test_variants_are_held_to_variants_before_them() -> None:
    for case in alternatives.CASES:
        before: set[str] = set()
        for variant in case.settings["variants"]:
            assert variant["name"] not in before, "two of one name"
            assert variant.get("same_as", next(iter(before), None)) in {*before, None}
            before.add(variant["name"])


def test_fields_that_a_variant_leaves_out_are_the_presets() -> None:
    fields = load_preset(Path("configs/vpmoe-tiny.toml")).fields
    for case in alternatives.CASES:
        for variant in case.settings["variants"]:
            assert set(variant.get("without", ())) <= set(fields), variant["name"]
    flags = small_flags("configs/vpmoe-tiny.toml", ["--lr", "1"], ["use_tpa"])
    assert "--use-tpa" not in flags
    assert flags[flags.index("--padded-vocab-size") + 1] == "512"
    assert flags[-2:] == ["--lr", "1"]
