"""Attributes that Megatron looks for on parameters and configurations, and misses in silence."""

from __future__ import annotations

from typing import Any

import torch

from vpmoe.megatron.contract import Contract, Exists, Reads

_FINALIZE = "megatron.core.distributed.finalize_model_grads"
_BLOCK = "megatron.core.transformer.transformer_block:TransformerBlock"

SEQUENCE_MARK = Contract(
    "mark sequence_parallel",
    "vpMoE sets `sequence_parallel` on norms' weights, whose gradients would otherwise stay each "
    "tensor-parallel rank's own.",
    "Find what `finalize_model_grads` asks of such parameters now, and set that in "
    "`mark_sequence`.",
    (
        Reads(
            f"{_FINALIZE}:_allreduce_non_tensor_model_parallel_grads",
            names=("sequence_parallel",),
        ),
        Reads(
            f"{_FINALIZE}:finalize_model_grads",
            names=("_allreduce_non_tensor_model_parallel_grads",),
        ),
    ),
)

EXPERT_MARK = Contract(
    "mark allreduce",
    "vpMoE sets `allreduce = False` on experts' weights under expert parallelism, whose gradients "
    "belong to the experts' own data-parallel group.",
    "Find how this version tells experts' parameters, and set that in `mark_expert`.",
    (
        Reads(
            "megatron.core.distributed.param_and_grad_buffer:group_params_for_buffers",
            names=("allreduce",),
        ),
        Reads("megatron.core.optimizer:_get_param_groups", names=("allreduce",)),
    ),
)

STAGE_MARK = Contract(
    "mark pipeline_parallel",
    "Every pipeline stage holds a copy of GRAPE-M's frequencies: with `has_cond_embedder` on the "
    "configuration Megatron sums the gradient of parameters marked `pipeline_parallel` over "
    "stages, and `shared` leaves copies out of the gradient norm.",
    "Find how this version keeps parameters in step that every stage holds, and set that in "
    "`mark_copy_of_stage`.",
    (
        Reads(
            f"{_FINALIZE}:_allreduce_conditional_embedding_grads",
            names=("has_cond_embedder", "pipeline_parallel"),
        ),
        Reads(
            f"{_FINALIZE}:finalize_model_grads",
            names=("_allreduce_conditional_embedding_grads",),
        ),
        Reads("megatron.core.transformer.module:param_is_not_shared", names=("shared",)),
        Reads(
            "megatron.core.optimizer.optimizer:MegatronOptimizer._filter_grads_for_norm",
            names=("param_is_not_shared",),
            former="megatron.core.optimizer.optimizer:MegatronOptimizer.get_main_grads_for_grad_norm",
        ),
    ),
)

SEPARATE_LAYERS = Contract(
    "layers saved one by one",
    "vpMoE sets `hetereogenous_dist_checkpoint` on its configuration, since local and global "
    "layers hold different weights and cannot be slices of one saved stack.",
    "Find how this version is told that layers differ, and set that in `save_layers_separately`.",
    (
        Exists(
            "megatron.core.transformer.transformer_config:TransformerConfig"
            ".hetereogenous_dist_checkpoint"
        ),
        Reads(f"{_BLOCK}.sharded_state_dict", names=("hetereogenous_dist_checkpoint",)),
    ),
)

CONTRACTS = (SEQUENCE_MARK, EXPERT_MARK, STAGE_MARK, SEPARATE_LAYERS)


def mark_sequence(parameter: torch.nn.Parameter, sequence_parallel: bool) -> None:
    """Has a replicated parameter's gradient summed where ranks hold parts of the sequence."""
    SEQUENCE_MARK.check()
    parameter.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]


def mark_expert(parameter: torch.nn.Parameter, expert_parallel: bool) -> None:
    """Has an expert's gradient reduced over the experts' own group, where they are sharded."""
    EXPERT_MARK.check()
    parameter.allreduce = not expert_parallel  # type: ignore[attr-defined]


def mark_copy_of_stage(parameter: torch.nn.Parameter, config: Any, counted: bool) -> None:
    """Keeps a parameter in step that every pipeline stage holds a copy of.

    Args:
        parameter: this stage's copy.
        config: the model's `TransformerConfig`.
        counted: this copy counts in the gradient norm; one of them does.
    """
    STAGE_MARK.check()
    parameter.pipeline_parallel = True  # type: ignore[attr-defined]
    parameter.shared = not counted  # type: ignore[attr-defined]
    # Megatron's switch for parameters that every stage holds a copy of.
    config.has_cond_embedder = True


def save_layers_separately(config: Any) -> None:
    """Keeps layers of a `TransformerConfig` apart in checkpoints: none is a slice of a stack."""
    SEPARATE_LAYERS.check()
    config.hetereogenous_dist_checkpoint = True
