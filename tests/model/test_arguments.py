"""Every refusal of the model's flags, with its own message."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from vpmoe.model.arguments import add_model_args, refuse_model_args, validate_model_args

ACCEPTED: dict[str, Any] = {
    "context_parallel_size": 1,
    "tensor_model_parallel_size": 1,
    "multi_latent_attention": False,
    "mtp_num_layers": None,
    "normalization": "RMSNorm",
    "untie_embeddings_and_output_weights": True,
    "attention_dropout": 0.0,
    "fp8": None,
    "cuda_graph_impl": "none",
    "fp16": False,
    "rampup_batch_size": None,
    "step_batch_size_schedule": None,
    "num_layers": 8,
    "num_attention_heads": 8,
    "group_query_attention": True,
    "num_query_groups": 2,
    "kv_channels": 128,
    "position_embedding_type": "grapem",
    "flash_decode": False,
    "no_rope_freq": 4,
    "window_size": (127, 0),
    "window_attn_skip_freq": 4,
    "grapem_log_freq_scale": 16.0,
    "grapem_learnable_freq": True,
    "grapem_per_head": False,
    "grape_a": True,
    "grape_a_with_rotation": False,
    "use_tpa": True,
    "tpa_rank": 2,
    "tpa_q_rank": 4,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "moe_shared_expert_intermediate_size": 256,
    "num_experts": 256,
    "moe_router_topk": 4,
    "moe_router_num_groups": 8,
    "moe_router_group_topk": 4,
    "moe_router_group_score_topk": None,
    "moe_router_load_balancing_type": "seq_aux_loss",
    "moe_router_fusion": False,
    "moe_enable_routing_replay": False,
}


def check(values: dict[str, Any]) -> None:
    """What comes before Megatron's own checks, and after."""
    args = argparse.Namespace(**values)
    refuse_model_args(args)
    validate_model_args(args)


def test_the_architecture_is_accepted() -> None:
    check(ACCEPTED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_parallel_size": 2}, "--context-parallel-size 2"),
        ({"multi_latent_attention": True}, "--multi-latent-attention"),
        ({"mtp_num_layers": 1}, "--mtp-num-layers"),
        ({"normalization": "LayerNorm"}, "--normalization LayerNorm"),
        ({"untie_embeddings_and_output_weights": False}, "--untie-embeddings"),
        ({"attention_dropout": 0.1}, "--attention-dropout 0.1"),
        ({"fp8": "e4m3"}, "--fp8-format"),
        ({"cuda_graph_impl": "local"}, "--cuda-graph-impl local"),
        ({"cuda_graph_impl": "full_iteration", "fp16": True}, "loss scale of its capture"),
        (
            {"cuda_graph_impl": "full_iteration", "step_batch_size_schedule": "0:2 4096:4"},
            "leave out --step-batch-size-schedule",
        ),
        ({"rampup_batch_size": ["2", "2", "8"]}, "use --step-batch-size-schedule"),
        ({"position_embedding_type": "learned_absolute"}, "learned_absolute"),
        ({"flash_decode": True}, "--flash-decode"),
        ({"kv_channels": 127}, "--kv-channels 127"),
        ({"grapem_log_freq_scale": 0.0}, "--grapem-log-freq-scale"),
        ({"position_embedding_type": "none", "grapem_per_head": True}, "--grapem-"),
        (
            {
                "grapem_per_head": True,
                "tensor_model_parallel_size": 4,
                "use_tpa": False,
                "tpa_rank": None,
                "tpa_q_rank": None,
            },
            "--grapem-per-head: 2 KV groups",
        ),
        ({"no_rope_freq": None}, r"layers \[4, 8\] would both rotate"),
        ({"no_rope_freq": [0, 0, 0, 1, 0, 0, 0, 0]}, r"layers \[8\] would both rotate"),
        ({"grape_a": False, "grape_a_with_rotation": True}, "needs --grape-a"),
        ({"num_query_groups": 3}, "--num-query-groups 3"),
        (
            {"window_size": None, "use_tpa": False, "tpa_rank": None, "tpa_q_rank": None},
            "--window-attn-skip-freq",
        ),
        ({"window_size": None, "window_attn_skip_freq": None}, "set --window-size"),
        ({"use_tpa": False}, "need --use-tpa"),
        ({"tpa_rank": None}, "--tpa-rank is missing"),
        ({"tpa_q_rank": None}, "--tpa-q-rank is missing"),
        ({"tpa_rank": 0}, "--tpa-rank 0"),
        ({"add_qkv_bias": True}, "--add-qkv-bias"),
        (
            {"add_bias_linear": True, "moe_shared_expert_intermediate_size": None},
            "--use-tpa: its factors have no bias",
        ),
        ({"add_bias_linear": True}, "shared experts have no bias"),
        ({"tensor_model_parallel_size": 4}, "at least the tensor-parallel size 4"),
        (
            {"num_query_groups": 4, "tensor_model_parallel_size": 3},
            "does not divide among 3",
        ),
        ({"moe_router_topk": 2}, "--moe-router-group-topk 4 exceeds --moe-router-topk 2"),
        ({"moe_router_topk": 33, "moe_router_group_topk": 1}, "1 groups of 32 experts have only"),
        ({"moe_router_group_score_topk": 0}, "--moe-router-group-score-topk 0"),
        ({"moe_router_group_score_topk": 33}, "--moe-router-group-score-topk 33"),
        ({"moe_router_group_score_topk": 2, "num_experts": None}, "needs --num-experts"),
        ({"moe_router_group_score_topk": 2, "moe_router_fusion": True}, "--moe-router-fusion"),
        (
            {"moe_router_group_score_topk": 2, "moe_router_group_topk": None},
            "needs --moe-router-num-groups",
        ),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check({**ACCEPTED, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts": None},
        {"moe_router_group_score_topk": 2},
        {"moe_router_group_score_topk": 2, "moe_router_topk": 2},
        {"moe_router_num_groups": None, "moe_router_group_topk": None},
    ],
)
def test_other_routings_are_accepted(changes: dict[str, Any]) -> None:
    check({**ACCEPTED, **changes})


def test_both_encodings_on_a_layer_when_asked_for_by_name() -> None:
    changes = {"no_rope_freq": None, "grape_a_with_rotation": True}
    check({**ACCEPTED, **changes})


def test_flags_parse() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--window-size", type=str)
    add_model_args(parser)
    args = parser.parse_args(
        ["--window-size", "128", "--no-grapem-learnable-freq", "--use-tpa", "--tpa-rank", "2"]
    )
    assert args.window_size == (127, 0)
    assert not args.grapem_learnable_freq
    assert args.tpa_rank == 2
