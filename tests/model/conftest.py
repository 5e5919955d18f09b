"""A small vpMoE with every feature on, built in this process on the CPU lane."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vpmoe.runtime import cpu_lane

# The references and runs that the tests of this folder share.
sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="module")
def megatron() -> Iterator[None]:
    """Megatron's process groups of one rank, on gloo."""
    if torch.cuda.is_available():
        pytest.skip("the CPU lane is for machines without CUDA")
    with cpu_lane.activate():
        from megatron.core import parallel_state
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        model_parallel_cuda_manual_seed(1)
        try:
            yield
        finally:
            parallel_state.destroy_model_parallel()
            torch.distributed.destroy_process_group()


@pytest.fixture
def small_config(megatron: None) -> Callable[..., Any]:
    """Makes the configuration of a small model: 4 layers, the last one global, 3 of them MoE."""
    from megatron.core.activations import squared_relu

    from vpmoe.model.config import VpmoeConfig

    def make(**changes: Any) -> VpmoeConfig:
        fields: dict[str, Any] = {
            "num_layers": 4,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "kv_channels": 8,
            "ffn_hidden_size": 16,
            "normalization": "RMSNorm",
            "layernorm_epsilon": 1e-5,
            "qk_layernorm": True,
            "add_bias_linear": False,
            "activation_func": squared_relu,
            "attention_dropout": 0.0,
            "hidden_dropout": 0.0,
            "bias_dropout_fusion": False,
            "perform_initialization": False,
            "use_cpu_initialization": True,
            "position_embedding_type": "grapem",
            "grape_a": True,
            "no_rope_freq": 4,
            "window_size": (5, 0),
            "window_attn_skip_freq": 4,
            "use_tpa": True,
            "tpa_rank": 2,
            "tpa_q_rank": 3,
            "softmax_type": "learnable",
            "num_moe_experts": 4,
            "moe_layer_freq": [0, 1, 1, 1],
            "moe_ffn_hidden_size": 8,
            "moe_shared_expert_intermediate_size": 12,
            "moe_router_topk": 2,
            "moe_router_num_groups": 2,
            "moe_router_group_topk": 1,
            "moe_router_score_function": "sigmoid",
            "moe_router_topk_scaling_factor": 2.5,
            "moe_router_load_balancing_type": "seq_aux_loss",
            "moe_aux_loss_coeff": 1e-4,
            "moe_router_enable_expert_bias": True,
            "moe_router_dtype": "fp32",
            "moe_token_dispatcher_type": "allgather",
        }
        fields |= changes
        if fields["num_moe_experts"] is None:
            fields = {name: value for name, value in fields.items() if "moe_" not in name}
        return VpmoeConfig(**fields)

    return make


@pytest.fixture
def small_model(small_config: Callable[..., Any]) -> Callable[..., Any]:
    """Builds a small model from changes to its configuration; a vocabulary of 64."""
    from vpmoe.model.builder import build_model

    def make(seed: int = 1, **changes: Any) -> Any:
        return build_model(
            small_config(**changes), vocab_size=64, max_sequence_length=256, seed=seed
        )

    return make
