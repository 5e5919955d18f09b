"""ModuleSpecs of vpMoE's layers: local and global attention, dense and MoE feed-forward."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)

from vpmoe.megatron.helpers import get_num_layers_to_build, get_transformer_layer_offset
from vpmoe.model.attention.core import CoreAttention
from vpmoe.model.config import VpmoeConfig
from vpmoe.model.experts import GroupedExperts, grouping_unsupported_reason
from vpmoe.model.moe.groups import GroupScoreRouter
from vpmoe.model.moe.layer import LocalMoELayer
from vpmoe.model.moe.router import FusedRouter
from vpmoe.model.norm import RMSNorm
from vpmoe.model.self_attention import VpmoeSelfAttention
from vpmoe.model.tpa import TensorProductQKV, TPASelfAttention
from vpmoe.model.window import layer_window


def block_spec(config: VpmoeConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """Specifies the layers that this pipeline stage builds, each as its schedules say.

    Args:
        config: vpMoE's configuration.
        vp_stage: the chunk of a virtual pipeline.

    Returns:
        A specification for each layer of the stage.

    Raises:
        ValueError: `moe_layer_freq` names another number of layers than the model has.
    """
    if config.pipeline_model_parallel_layout is not None:
        raise ValueError("--pipeline-model-parallel-layout is not supported by vpMoE")
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    first = get_transformer_layer_offset(config, vp_stage=vp_stage)
    layers = [layer_spec(config, first + i + 1) for i in range(count)]
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=RMSNorm)


def layer_spec(config: VpmoeConfig, layer_number: int) -> ModuleSpec:
    """The spec of one layer, counted from 1 over the whole model."""
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=_attention_spec(config, layer_number),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=_moe(config) if is_moe_layer(config, layer_number) else _dense(),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def uses_tpa(config: VpmoeConfig, layer_number: int) -> bool:
    """TPA is on local layers only."""
    return config.use_tpa and layer_window(config, layer_number) is not None


def is_moe_layer(config: VpmoeConfig, layer_number: int) -> bool:
    """Whether a layer, counted from 1, routes to experts (Megatron's `moe_layer_freq`)."""
    if config.num_moe_experts is None:
        return False
    schedule = config.moe_layer_freq
    if isinstance(schedule, int):
        return (layer_number - 1) % schedule == 0
    if len(schedule) != config.num_layers:
        raise ValueError(
            f"--moe-layer-freq names {len(schedule)} layers, the model has {config.num_layers}"
        )
    return bool(schedule[layer_number - 1])


def groups_experts(config: VpmoeConfig) -> bool:
    """Whether the routed experts are one grouped product: `--expert-kernel`, auto on a GPU."""
    if config.expert_kernel == "auto":
        return torch.cuda.is_available() and grouping_unsupported_reason(config) is None
    return config.expert_kernel in ("grouped", "fused")


def _attention_spec(config: VpmoeConfig, layer_number: int) -> ModuleSpec:
    tpa = uses_tpa(config, layer_number)
    norm = RMSNorm if config.qk_layernorm else None
    return ModuleSpec(
        module=TPASelfAttention if tpa else VpmoeSelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=TensorProductQKV if tpa else ColumnParallelLinear,
            core_attention=CoreAttention,
            linear_proj=RowParallelLinear,
            q_layernorm=norm,
            k_layernorm=norm,
        ),
    )


def _dense() -> Any:
    return partial(MLP.as_mlp_submodule, submodules=_mlp_submodules())


def _moe(config: VpmoeConfig) -> Any:
    submodules = _mlp_submodules()
    experts = (
        GroupedExperts if groups_experts(config) else partial(SequentialMLP, submodules=submodules)
    )
    shared = partial(SharedExpertMLP, submodules=submodules)
    if config.expert_kernel == "fused":
        return partial(
            LocalMoELayer,
            submodules=MoESubmodules(experts=experts, shared_experts=shared, router=FusedRouter),
        )
    router = GroupScoreRouter if config.moe_router_group_score_topk else TopKRouter
    return partial(
        MoELayer, submodules=MoESubmodules(experts=experts, shared_experts=shared, router=router)
    )


def _mlp_submodules() -> MLPSubmodules:
    return MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
