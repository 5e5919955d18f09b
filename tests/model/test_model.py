"""The built model: parameters, schedules, windows by probing, documents, recomputing, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vpmoe.model.params import count_parameters

VOCABULARY = 64


def fields_of(config: Any) -> dict[str, Any]:
    """A configuration as the preset's fields that the parameter table reads."""
    fields = {
        name: getattr(config, name)
        for name in (
            "num_layers",
            "hidden_size",
            "kv_channels",
            "num_attention_heads",
            "num_query_groups",
            "ffn_hidden_size",
            "qk_layernorm",
            "softmax_type",
            "position_embedding_type",
            "grapem_per_head",
            "use_tpa",
            "tpa_rank",
            "tpa_q_rank",
            "window_size",
            "window_attn_skip_freq",
        )
    }
    fields["disable_bias_linear"] = not config.add_bias_linear
    fields["padded_vocab_size"] = VOCABULARY
    if config.num_moe_experts is not None:
        fields |= {
            "num_experts": config.num_moe_experts,
            "moe_layer_freq": config.moe_layer_freq,
            "moe_ffn_hidden_size": config.moe_ffn_hidden_size,
            "moe_shared_expert_intermediate_size": config.moe_shared_expert_intermediate_size or 0,
            "moe_router_topk": config.moe_router_topk,
        }
    return fields


def component(name: str) -> str:
    """The row of the table that a parameter belongs to."""
    if "embedding" in name or "output_layer" in name:
        return "embeddings"
    if "grapem" in name:
        return "grapem"
    if "self_attention" in name:
        return "attention"
    if "router" in name:
        return "routers"
    if "shared_experts" in name:
        return "shared_experts"
    if ".experts." in name:
        return "experts"
    return "norms" if "layernorm" in name else "dense_ffn"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"expert_kernel": "grouped"},
        {"use_tpa": False, "qk_layernorm": False, "softmax_type": "vanilla"},
        {"num_moe_experts": None, "grapem_per_head": True},
        {"window_size": None, "window_attn_skip_freq": None, "use_tpa": False, "grape_a": False},
        {"moe_layer_freq": [1, 0, 0, 1], "moe_shared_expert_intermediate_size": None},
        {
            "use_tpa": False,
            "add_bias_linear": True,
            "moe_shared_expert_intermediate_size": None,
        },
    ],
)
def test_table_equals_the_built_model(
    small_model: Callable[..., Any], changes: dict[str, Any]
) -> None:
    model = small_model(**changes)
    table = count_parameters(fields_of(model.config))
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        found[component(name)] = found.get(component(name), 0) + parameter.numel()
    expected = dict(table.components)
    expected["attention"] = expected.pop("local_attention") + expected.pop("global_attention")
    assert found == {name: count for name, count in expected.items() if count}
    assert sum(found.values()) == table.total
    if model.config.num_moe_experts is not None:
        layers = sum(model.config.moe_layer_freq)
        idle = layers * (4 - 2) * (2 * 32 * 8 + model.config.add_bias_linear * (32 + 8))
        assert table.active == table.total - idle


def test_schedules_compose(small_model: Callable[..., Any]) -> None:
    """Layer 1 is dense, later ones MoE; every fourth is global, unrotated and has the bias."""
    from megatron.core.transformer.moe.moe_layer import MoELayer

    model = small_model(num_layers=8, moe_layer_freq=[0] + [1] * 7, window_size=(127, 0))
    layers = model.decoder.layers
    assert [isinstance(layer.mlp, MoELayer) for layer in layers] == [False] + [True] * 7
    patterns = [layer.self_attention.core_attention.pattern for layer in layers]
    assert [p.window for p in patterns] == [128, 128, 128, None] * 2
    assert [p.slopes is not None for p in patterns] == [False, False, False, True] * 2
    rotates = [model.config.rotates(n) for n in range(1, 9)]
    assert rotates == [True, True, True, False] * 2


def test_softmax_offset_is_one_zero_logit_a_head(small_model: Callable[..., Any]) -> None:
    for layer in small_model().decoder.layers:
        offset = layer.self_attention.core_attention.softmax_offset
        assert offset.shape == (4,)
        assert not offset.any()
        assert offset.requires_grad
        assert offset.tensor_model_parallel
        assert offset.partition_dim == 0


def test_off_by_one_softmax_has_a_fixed_zero_offset(small_model: Callable[..., Any]) -> None:
    model = small_model(softmax_type="off-by-one")
    core = model.decoder.layers[0].self_attention.core_attention
    assert not core.softmax_offset.requires_grad
    assert core.pattern.has_offset
    assert not any("softmax_offset" in name for name in model.state_dict())


@torch.no_grad()
def test_shared_expert_is_always_on_at_its_total_width(small_model: Callable[..., Any]) -> None:
    moe = small_model().eval().decoder.layers[1].mlp
    assert moe.shared_experts.linear_fc1.weight.shape == (12, 32)
    assert moe.shared_experts.linear_fc2.weight.shape == (32, 12)
    assert moe.shared_experts.gate_weight is None
    x = torch.randn(7, 2, 32)
    whole, _ = moe(x)
    shared = torch.relu(x @ moe.shared_experts.linear_fc1.weight.T) ** 2
    shared = shared @ moe.shared_experts.linear_fc2.weight.T
    for expert in moe.experts.local_experts:
        expert.linear_fc2.weight.zero_()
    alone, _ = moe(x)
    torch.testing.assert_close(alone, shared)
    assert not torch.allclose(whole, alone)


@torch.no_grad()
def test_router_weighs_by_the_sigmoid_of_the_best_group(small_model: Callable[..., Any]) -> None:
    """DeepSeek-V3's grouped top-k: 2 experts from the 1 best of 2 groups, normalised, times 2.5."""
    router = small_model().eval().decoder.layers[1].mlp.router
    router.weight.normal_()
    x = torch.randn(9, 1, 32)
    probabilities, chosen = router(x)
    scores = torch.sigmoid(x.view(9, 32) @ router.weight.T)
    group = scores.view(9, 2, 2).sum(-1).argmax(-1)
    for t in range(9):
        experts = [2 * int(group[t]), 2 * int(group[t]) + 1]
        assert chosen[t].nonzero().flatten().tolist() == experts
        expected = scores[t, experts] / scores[t, experts].sum() * 2.5
        torch.testing.assert_close(probabilities[t, experts], expected, atol=1e-5, rtol=1e-5)


LENGTH = 130


@pytest.mark.parametrize("window", [1, 2, 7, 128, LENGTH - 1, LENGTH, LENGTH + 1])
def test_every_layer_sees_exactly_its_window(small_model: Callable[..., Any], window: int) -> None:
    """Which inputs move which outputs, by gradients through projections, norm and rotation."""
    model = small_model(window_size=(window - 1, 0)).double()
    rotation = model.grapem(torch.arange(LENGTH)[None])
    for number, layer in enumerate(model.decoder.layers, 1):
        x = torch.randn(LENGTH, 1, 32, dtype=torch.float64, requires_grad=True)
        out, _ = layer.self_attention(x, None, rotary_pos_emb=rotation)
        local = number % 4 != 0
        for i in sorted({0, 1, 5, 6, 7, 64, 126, 127, 128, LENGTH - 1}):
            (grad,) = torch.autograd.grad(out[i].sum(), x, retain_graph=True)
            first = max(0, i - (window - 1)) if local else 0
            assert grad.abs().sum((1, 2)).nonzero().flatten().tolist() == list(range(first, i + 1))


def batch(length: int = 20) -> dict[str, torch.Tensor]:
    """Two documents in each of two sequences."""
    generator = torch.Generator().manual_seed(3)
    first = torch.tensor([7, 12])[:, None]
    position = torch.arange(length).expand(2, length)
    return {
        "input_ids": torch.randint(VOCABULARY, (2, length), generator=generator),
        "labels": torch.randint(VOCABULARY, (2, length), generator=generator),
        "position_ids": torch.where(position < first, position, position - first),
        "document_ids": (position >= first).int(),
    }


@torch.no_grad()
def test_packed_documents_equal_separate_ones(small_model: Callable[..., Any]) -> None:
    model = small_model().eval()
    data = batch()
    together = model(data["input_ids"], data["position_ids"], document_ids=data["document_ids"])
    for row, first in enumerate((7, 12)):
        for part in (slice(0, first), slice(first, 20)):
            ids = data["input_ids"][row : row + 1, part]
            alone = model(ids, torch.arange(ids.shape[1])[None])
            torch.testing.assert_close(together[row : row + 1, part], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
        {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        },
    ],
    ids=["selective", "full"],
)
def test_recomputation_changes_nothing(
    small_model: Callable[..., Any], changes: dict[str, Any]
) -> None:
    data = batch()
    grads = []
    for extra in ({}, changes):
        model = small_model(**extra)
        # Another micro-batch in between must not leak its documents into the recomputation.
        losses = model(**data)
        model(data["input_ids"], data["position_ids"], labels=data["labels"])
        losses.mean().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, expected in grads[0].items():
        torch.testing.assert_close(grads[1][name], expected, atol=1e-7, rtol=1e-5, msg=name)


def test_every_parameter_gets_a_gradient(small_model: Callable[..., Any]) -> None:
    model = small_model()
    model(**batch()).mean().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_grouped_experts_equal_sequential_ones(small_model: Callable[..., Any]) -> None:
    data = batch()
    results = []
    for kernel in ("sequential", "grouped"):
        model = small_model(expert_kernel=kernel)
        losses = model(**data)
        losses.mean().backward()
        experts = [layer.mlp.experts for layer in list(model.decoder.layers)[1:]]
        grads = []
        for layer in experts:
            if kernel == "grouped":
                grads += [layer.weight1.grad, layer.weight2.grad]
            else:
                grads += [
                    torch.stack([getattr(e, linear).weight.grad for e in layer.local_experts])
                    for linear in ("linear_fc1", "linear_fc2")
                ]
        results.append([losses.detach(), *grads])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-5)


def test_initial_weights_depend_on_the_seed_alone(small_model: Callable[..., Any]) -> None:
    first = small_model(seed=5).state_dict()
    torch.rand(1000)
    again = small_model(seed=5).state_dict()
    other = small_model(seed=6).state_dict()
    for name, tensor in first.items():
        if torch.is_tensor(tensor):
            assert torch.equal(tensor, again[name]), name
    weight = "decoder.layers.1.mlp.experts.local_experts.0.linear_fc1.weight"
    assert not torch.equal(first[weight], other[weight])
    assert not torch.equal(first[weight], first[weight.replace("experts.0", "experts.1")])


def test_initial_weights_have_one_spread(small_model: Callable[..., Any]) -> None:
    state = small_model(hidden_size=256, kv_channels=64).state_dict()
    assert state["embedding.word_embeddings.weight"].std() == pytest.approx(0.02, rel=0.05)
    for part in ("linear_proj", "linear_qkv"):
        weight = state[f"decoder.layers.3.self_attention.{part}.weight"]
        assert weight.std() == pytest.approx(0.02, rel=0.05)
    down = state["decoder.layers.1.mlp.experts.local_experts.0.linear_fc2.weight"]
    assert down.std() == pytest.approx(0.02, rel=0.05)
    assert (state["decoder.final_layernorm.weight"] == 1).all()


def test_bf16_keeps_phi_in_fp32(small_model: Callable[..., Any]) -> None:
    from megatron.core.transformer.module import Float16Module

    model = small_model(bf16=True, params_dtype=torch.bfloat16)
    phi = model.grapem.phi.detach().clone()
    wrapped = Float16Module(model.config, model)
    assert model.output_layer.weight.dtype == torch.bfloat16
    assert model.grapem.phi.dtype == torch.float32
    assert torch.equal(model.grapem.phi, phi)
    wrapped(**batch()).mean().backward()
    assert model.grapem.phi.grad.dtype == torch.float32
    saved = model.grapem.sharded_state_dict("grapem.")["grapem.phi"]
    assert saved.dtype == torch.float32


def test_refusals_at_run_time(small_model: Callable[..., Any]) -> None:
    model = small_model()
    data = batch()
    with pytest.raises(ValueError, match="takes no attention_mask"):
        model(data["input_ids"], data["position_ids"], torch.ones(1, 1, 20, 20).bool())
    with pytest.raises(NotImplementedError, match="packed_seq_params"):
        model(data["input_ids"], data["position_ids"], packed_seq_params=object())
    with pytest.raises(ValueError, match="document_ids must be int32"):
        model(data["input_ids"], data["position_ids"], document_ids=data["document_ids"].long())
    attention = model.decoder.layers[0].self_attention
    x = torch.randn(4, 1, 32)
    with pytest.raises(NotImplementedError, match="inference"):
        attention(x, None, inference_context=object())
    with pytest.raises(NotImplementedError, match="flash decode"):
        attention(x, None, rotary_pos_cos=torch.ones(1))
    with pytest.raises(NotImplementedError, match=r"layer 1: packed_seq_params \(THD\)"):
        attention(x, None, packed_seq_params=object())
    with pytest.raises(NotImplementedError, match="layer 1: attention_bias"):
        attention(x, None, attention_bias=torch.zeros(1))


def test_refusals_at_construction(small_model: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="cannot compute this layer"):
        small_model(attention_kernel="triton")(**batch())
    with pytest.raises(ValueError, match="names 3 layers"):
        small_model(moe_layer_freq=[0, 1, 1])
    with pytest.raises(ValueError, match="context parallelism"):
        small_model(context_parallel_size=2)
