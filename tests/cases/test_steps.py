"""The cases of what a training meets besides the plain step: what their parts see and leave out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from validation.cases import discover_cases, discover_faults
from validation.running.execution import RunOptions, run_case
from validation.running.recorder import Recorder
from validation.running.source import find_root
from validation.trace import HeldInvariant, Trace
from vpmoe.cases.epochs import _Stream
from vpmoe.cases.evaluated import _check_splits
from vpmoe.cases.idle import _decay_gap
from vpmoe.cases.skipped import FiniteSteps, _Watch
from vpmoe.cases.state import Place, differing, training_state
from vpmoe.cases.training import build_data, build_files

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="runs in the CPU lane")


def broken(trace: Trace) -> set[str]:
    values = [event.value for event in trace.events]
    return {v.name for v in values if isinstance(v, HeldInvariant) and not v.holds}


class Router(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, 3))
        self.register_buffer("expert_bias", torch.zeros(2))


def training() -> tuple[list[torch.nn.Module], Any, Any]:
    """A model, its optimizer in a chain as Megatron's, and a schedule."""
    model = torch.nn.ModuleDict({"router": Router(), "norm": torch.nn.LayerNorm(3)})
    inner = torch.optim.AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    inner.step()
    chain = SimpleNamespace(chained_optimizers=[SimpleNamespace(optimizer=inner)])
    return [model], chain, SimpleNamespace(num_steps=4)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda m, o, s: m["router"].weight.data[1, 2].add_(1e-7), Place("router", "weight")),
        (lambda m, o, s: m["router"].expert_bias.add_(1e-3), Place("router", "expert_bias")),
        (
            lambda m, o, s: o.state[m["norm"].weight]["exp_avg"].mul_(0.9),
            Place("norm", "weight.exp_avg"),
        ),
        (
            lambda m, o, s: o.state[m["norm"].bias]["step"].add_(1),
            Place("norm", "bias.step"),
        ),
        (lambda m, o, s: vars(s).update(num_steps=6), Place("schedule", "num_steps")),
    ],
)
def test_a_state_names_what_moved(change: Any, place: Place) -> None:
    model, chain, scheduler = training()
    before = training_state(model, chain, scheduler)
    assert differing(before, training_state(model, chain, scheduler)) == []
    change(model[0], chain.chained_optimizers[0].optimizer, scheduler)
    assert differing(before, training_state(model, chain, scheduler)) == [place]


def test_what_is_gone_or_new_differs() -> None:
    one, two = Place("a", "x"), Place("b", "x")
    assert differing({one: "1"}, {two: "1"}) == [one, two]


def test_numbers_of_a_poisoned_step_are_left_out() -> None:
    recorder = Recorder(steps=(1, 2))
    finite = FiniteSteps(recorder, (2,))
    assert (finite.wants(1), finite.wants(2)) == (True, False)
    for step in (1, 2):
        finite.curve(step, "lm_loss", float("nan") if step == 2 else 3.0)
        finite.curve(step, "learning_rate", 0.1, "optimizer")
        finite.discrete("batch", [step], tensor="tokens", step=step, phase="data")
        finite.tensor(
            step=step, micro_batch=0, phase="forward", module="m", tensor="t", value=torch.ones(2)
        )
    trace = recorder.trace("case", {})
    curves = {key.metric: series for key, series in trace.curves.items()}
    assert curves == {"lm_loss": {1: 3.0}, "learning_rate": {1: 0.1, 2: 0.1}}
    assert [(event.key.step, event.key.tensor) for event in trace.events] == [
        (1, "tokens"),
        (1, "t"),
        (2, "tokens"),
    ]


def test_one_element_is_poisoned() -> None:
    watch = _Watch(Recorder(), [{"step": 2, "module": "m", "value": "nan"}])
    found = watch._poisoned(torch.ones(2, 3), float("nan"))
    assert found.isnan().nonzero().tolist() == [[0, 0]]
    assert watch._applied == 1


def test_decay_is_measured_relative_to_the_weight() -> None:
    group = {"lr": 0.5, "weight_decay": 0.1}
    before = torch.tensor([1.0, -1e-3, 0.0])
    assert _decay_gap(before, before * 0.95, group) <= 2.0**-23
    assert _decay_gap(before, before, group) == pytest.approx(1 / 0.95 - 1)
    assert _decay_gap(before, torch.tensor([0.95, -0.95e-3, 1e-9]), group) > 1.0


def build(folder: Path, fraction: float) -> Path:
    settings = {
        "conversations": "data/sample/conversations.jsonl",
        "valid_fraction": fraction,
    }
    build_files(settings, folder)
    return folder


def test_splits_are_disjoint_and_everything(tmp_path: Path) -> None:
    data, whole = build(tmp_path / "data", 0.25), build(tmp_path / "whole", 0.0)
    recorder = Recorder()
    _check_splits(recorder, data, whole)
    assert broken(recorder.trace("evaluated", {})) == set()
    recorder = Recorder()
    _check_splits(recorder, data, build(tmp_path / "other", 0.5))
    assert broken(recorder.trace("evaluated", {})) == {"the splits are all rows together"}


def test_documents_of_the_validation_split_are_recorded_apart(tmp_path: Path) -> None:
    recorder = Recorder()
    settings = {"conversations": "data/sample/conversations.jsonl", "valid_fraction": 0.25}
    build_data(recorder, settings, tmp_path / "data")
    modules = {event.key.module for event in recorder.trace("evaluated", {}).events}
    assert modules == {"dataset", "dataset/shard_00", "dataset/valid/shard_00"}


class Store(list[dict[str, Any]]):
    """Two documents, as a `DocumentStore` reads them."""

    def read(self, number: int) -> dict[str, Any]:
        return self[number]


def test_samples_are_parts_of_one_stream() -> None:
    tokens = [np.arange(10, 15), np.arange(20, 24)]
    store = Store({"tokens": part, "lossmask": part % 2, "span": part % 3} for part in tokens)
    stream = _Stream(store, [1, 0, 0, 1], 4)
    assert stream.tokens_of_epoch == 9
    sample = {name: values.tolist() for name, values in stream.sample(2).items()}
    # 20 21 22 23 10 11 12 13 | 14 10 11 12 13 | 14 20 ...
    assert sample["tokens"] == [14, 10, 11, 12]
    assert sample["labels"] == [10, 11, 12, 13]
    assert sample["loss_mask"] == [0, 0, 1, 0]
    assert sample["document_ids"] == [0, 1, 1, 1]
    assert sample["position_ids"] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        (None, None),
        ("epochs-in-one-order", "an epoch is not in another's order"),
        ("sample-lost-at-the-border", "no sample is read twice"),
        ("last-epoch-mixed-in", "the samples of the epochs before the last are read first"),
        ("later-epoch-off-by-one", "tokens are the stream's"),
    ],
)
def test_epochs(fault: str | None, law: str | None, tmp_path: Path) -> None:
    plant = None if fault is None else discover_faults(find_root())[fault].plant
    options = RunOptions(lane="cpu", fault=plant)
    case = discover_cases(find_root())["epochs"]
    found = broken(run_case(case, options, find_root(), tmp_path / "log.txt"))
    assert found == set() if law is None else law in found
