"""What is recorded of each kind of parameter, and of the marks of a parameter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vpmoe.cases.marks import marks_of
from vpmoe.cases.rates import gradient_norms, kind_of_parameter, record_rates


class Curves:
    """Stands for a recorder."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def curve(self, step: int, metric: str, value: float, phase: str) -> None:
        assert (step, phase) == (3, "optimizer")
        self.found[metric] = value


class Layer(torch.nn.Module):
    """Two parameters in `self_attention`, one of them a bias, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attention = torch.nn.Linear(2, 2)
        self.norm = torch.nn.LayerNorm(2, bias=False)


def optimizer_of(model: Layer) -> Any:
    matrices = {"params": [model.self_attention.weight], "lr": 0.5, "weight_decay": 0.1}
    vectors = {
        "params": [model.self_attention.bias, model.norm.weight],
        "lr": 0.25,
        "weight_decay": 0.0,
    }
    inner = SimpleNamespace(param_groups=[matrices, vectors])
    return SimpleNamespace(chained_optimizers=[SimpleNamespace(optimizer=inner)])


def test_each_kind_has_its_own_rate_decay_and_clipping() -> None:
    model, curves = Layer(), Curves()
    optimizer = optimizer_of(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = gradient_norms([model], optimizer)
    assert before == {
        "attention": 2.0,
        "attention_bias": pytest.approx(2**0.5),
        "norm": pytest.approx(2**0.5),
    }
    assert model.norm.weight.grad is not None
    model.norm.weight.grad.mul_(0.5)
    record_rates(curves, 3, [model], optimizer, before)  # type: ignore[arg-type]
    assert curves.found == {
        "learning_rate/attention": 0.5,
        "learning_rate/attention_bias": 0.25,
        "learning_rate/norm": 0.25,
        "decay/attention": 0.1,
        "decay/attention_bias": 0.0,
        "decay/norm": 0.0,
        "clip_coefficient/attention": 1.0,
        "clip_coefficient/attention_bias": 1.0,
        "clip_coefficient/norm": 0.5,
    }


def test_a_parameter_of_a_kind_in_another_group_moves_its_rate() -> None:
    model, curves = Layer(), Curves()
    optimizer = optimizer_of(model)
    matrices, vectors = optimizer.chained_optimizers[0].optimizer.param_groups
    # Two norms at two rates.
    model.register_parameter("last_norm", torch.nn.Parameter(torch.ones(2)))
    matrices["params"].append(model.last_norm)
    record_rates(curves, 3, [model], optimizer, {})  # type: ignore[arg-type]
    assert curves.found["learning_rate/norm"] == 0.375
    assert vectors["lr"] == 0.25


def test_a_kind_tells_biases_apart() -> None:
    assert kind_of_parameter("decoder.layers.0.self_attention.linear_qkv.bias") == "attention_bias"
    assert kind_of_parameter("decoder.layers.0.self_attention.linear_qkv.weight") == "attention"
    assert kind_of_parameter("embedding.word_embeddings.weight") == "embedding"


def test_a_mark_that_says_nothing_is_that_of_a_parameter_without_it() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    assert marks_of(parameter) == {}
    parameter.allreduce = True  # type: ignore[attr-defined]
    parameter.sequence_parallel = False  # type: ignore[attr-defined]
    assert marks_of(parameter) == {}
    parameter.allreduce = False  # type: ignore[attr-defined]
    parameter.partition_dim = 0  # type: ignore[attr-defined]
    assert marks_of(parameter) == {"allreduce": False, "partition_dim": 0}


def test_a_rank_of_a_layout_is_built_without_the_others() -> None:
    from vpmoe.cases.built import record_built
    from vpmoe.config import load_preset
    from vpmoe.shipped import shipped

    found: dict[str, Any] = {}

    class Discrete:
        def discrete(self, name: str, value: Any, tensor: str) -> None:
            found[f"{name}.{tensor}"] = value

    flags = load_preset(shipped("configs/vpmoe-tiny.toml")).to_flags()
    parallel = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
    parallel += ["--expert-model-parallel-size", "2", "--expert-tensor-parallel-size", "1"]
    record_built(Discrete(), [*flags, *parallel], "tiny", ranks=2)  # type: ignore[arg-type]
    embedding = found["tiny/embedding.word_embeddings.weight.marks"]
    assert (embedding["shape"], embedding["partition_dim"]) == ([201_088 // 2, 64], 0)
    assert found["tiny/decoder.final_layernorm.weight.marks"]["sequence_parallel"] is True
    expert = found["tiny/decoder.layers.1.mlp.experts.weight1.marks"]
    assert (expert["allreduce"], expert["shape"][0]) == (False, 4)
    group = found[f"tiny/groups.{expert['group']}"]
    assert (group["optimizer"], group["is_expert_parallel"]) == ("NorMuon", True)
    assert group["max_lr"] == 3e-3
