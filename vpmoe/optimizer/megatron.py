"""NorMuon in Megatron's optimizer construction: `--optimizer normuon`.

Which parameters it steps, and how. Everything around the step is Megatron's: mixed precision,
clipping, schedules, checkpoints; `vpmoe.megatron.optimizer` puts NorMuon there.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, ParamKey
from megatron.core.process_groups_config import ProcessGroupCollection

from vpmoe.megatron.helpers import get_model_config, get_pg_size
from vpmoe.megatron.optimizer import build_chain, install_optimizer, key_of, wrap_with_row_state
from vpmoe.optimizer.chunks import MatrixLayout
from vpmoe.optimizer.normuon import NorMuon
from vpmoe.optimizer.polar_express import load_coefficients, polar_express_coefficients


@dataclass(frozen=True)
class ParameterPolicy:
    """How one parameter is optimized.

    Attributes:
        optimizer: `normuon` or `adamw`.
        lr_source: the flag that its maximum learning rate comes from.
        min_lr_source: the flag that its minimum learning rate comes from.
        max_lr: maximum learning rate.
        min_lr: minimum learning rate.
        decays: whether it takes weight decay.
    """

    optimizer: str
    lr_source: str
    min_lr_source: str
    max_lr: float
    min_lr: float
    decays: bool


def parameter_policy(
    name: str, param: torch.Tensor, options: argparse.Namespace
) -> ParameterPolicy:
    """Decides a parameter's optimizer, learning rates and weight decay.

    Args:
        name: qualified name in the model.
        param: the parameter, with Megatron's attributes.
        options: Megatron's arguments or `OptimizerConfig` with the flags of
            `vpmoe.optimizer.arguments`.

    Returns:
        The policy.
    """
    embedding = bool(getattr(param, "is_embedding_or_output_parameter", False))
    matrix = (param.ndim == 2 or is_stacked_expert(name, param)) and not embedding
    high, low = [("--lr", options.lr)], [("--min-lr", options.min_lr)]
    if not matrix:
        high.append(("--normuon-aux-lr", options.normuon_aux_lr))
        low.append(("--normuon-aux-min-lr", options.normuon_aux_min_lr))
    if embedding:
        high.append(("--decoupled-lr", options.decoupled_lr))
        low.append(("--decoupled-min-lr", options.decoupled_min_lr))
    lr_source, max_lr = [entry for entry in high if entry[1] is not None][-1]
    set_low = [entry for entry in low if entry[1] is not None]
    min_lr_source, min_lr = set_low[-1] if set_low else ("--min-lr", 0.0)
    return ParameterPolicy(
        optimizer="normuon" if matrix else "adamw",
        lr_source=lr_source,
        min_lr_source=min_lr_source,
        max_lr=max_lr,
        min_lr=min_lr,
        decays=param.ndim > 1,
    )


def is_stacked_expert(name: str, param: torch.Tensor) -> bool:
    """Whether a parameter is routed experts' weights [E, m, n]."""
    return param.ndim == 3 and _is_routed_expert(name)


def matrix_layout(
    name: str, param: torch.Tensor, config: Any, groups: ProcessGroupCollection | None
) -> MatrixLayout:
    """Finds out what the matrices in one of NorMuon's parameters are.

    Args:
        name: qualified name in the model.
        param: the parameter, with Megatron's attributes.
        config: the model's configuration, for the blocks of `linear_qkv.weight`.
        groups: process groups; None without tensor parallelism.

    Returns:
        How they are sharded and stacked.

    Raises:
        ValueError: the sharded dimension is none of a matrix, or a rank has no whole query groups.
    """
    block_rows = None
    if name.endswith("linear_qkv.weight"):
        heads = config.num_attention_heads // config.num_query_groups
        gates = 2 if getattr(config, "attention_output_gate", False) else 1
        block_rows = (heads * config.kv_channels,) * gates + (config.kv_channels,) * 2
    group = None
    if groups is not None and getattr(param, "tensor_model_parallel", False):
        group = groups.expt_tp if _is_routed_expert(name) else groups.tp
    if group is None or get_pg_size(group) == 1:
        return MatrixLayout(block_rows=block_rows)
    dimension = param.partition_dim - (param.ndim - 2)  # type: ignore[attr-defined]
    if dimension not in (0, 1):
        raise ValueError(f"{name}: no matrix dimension is sharded, partition_dim {dimension}")
    if block_rows is not None and param.shape[0] % sum(block_rows):
        raise ValueError(
            f"{name}: {param.shape[0]} rows on each tensor-parallel rank are no whole query groups "
            f"of {sum(block_rows)}; use at most num_query_groups ranks with --optimizer normuon"
        )
    return MatrixLayout(dimension, group, block_rows)


def install() -> None:
    """Makes Megatron's training loop build NorMuon for `--optimizer normuon`; idempotent."""
    install_optimizer("normuon", build_optimizer)


def build_optimizer(
    config: OptimizerConfig,
    model_chunks: Sequence[Any],
    options: argparse.Namespace,
    pg_collection: ProcessGroupCollection | None = None,
) -> MegatronOptimizer:
    """Builds NorMuon for the matrices and AdamW for the rest of a model.

    Args:
        config: Megatron's optimizer configuration, `optimizer` = "normuon".
        model_chunks: this rank's model chunks.
        options: holds the flags of `vpmoe.optimizer.arguments`.
        pg_collection: Megatron's process groups when None.

    Returns:
        Megatron's chain over both, which skips a step whose gradient norm is not finite.

    Raises:
        ValueError: a distributed, offloaded or precision-aware optimizer is asked for.
    """
    if config.use_distributed_optimizer or config.use_layer_wise_distributed_optimizer:
        raise ValueError("--optimizer normuon does not support --use-distributed-optimizer")
    if config.optimizer_cpu_offload:
        raise ValueError("--optimizer normuon does not support --optimizer-cpu-offload")
    if config.use_precision_aware_optimizer:
        raise ValueError("--optimizer normuon does not support --use-precision-aware-optimizer")
    groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups()
    names = {param: name for chunk in model_chunks for name, param in chunk.named_parameters()}
    merged = argparse.Namespace(**vars(options))
    for field in ("lr", "min_lr", "decoupled_lr", "decoupled_min_lr"):
        setattr(merged, field, getattr(config, field))
    model_config = get_model_config(model_chunks[0])

    def wrap(members: list[dict[str, Any]]) -> MegatronOptimizer:
        return _wrap_normuon(config, members, names, merged, model_config, groups)

    return build_chain(config, model_chunks, _overrides(names, merged), groups, wrap)


def _wrap_normuon(
    config: OptimizerConfig,
    param_groups: list[dict[str, Any]],
    names: Mapping[torch.Tensor, str],
    options: argparse.Namespace,
    model_config: Any,
    groups: ProcessGroupCollection,
) -> MegatronOptimizer:
    sf = options.polar_express_safety_factor
    path = options.polar_express_coeffs_path
    normuon = NorMuon(
        param_groups,
        lr=config.lr,
        momentum=options.normuon_momentum,
        beta2=options.normuon_beta2,
        weight_decay=config.weight_decay,
        coefficients=polar_express_coefficients(sf) if path is None else load_coefficients(path),
        safety_factor=sf,
        tp_mode=options.normuon_tp_mode,
        graph_after=options.cuda_graph_warmup_steps if config.optimizer_cuda_graph else None,
        layout=lambda param: matrix_layout(names[param], param, model_config, groups),
    )
    return wrap_with_row_state(normuon, config, "second_momentum")


def _overrides(
    names: Mapping[torch.Tensor, str], options: argparse.Namespace
) -> dict[ParamKey, dict[str, Any]]:
    """Megatron's parameter-group overrides, one for each policy that occurs."""
    result: dict[ParamKey, dict[str, Any]] = {}

    def policy_of(param: torch.Tensor, name: str) -> ParameterPolicy:
        return parameter_policy(name, param, options)

    for policy in dict.fromkeys(policy_of(param, name) for param, name in names.items()):
        override: dict[str, Any] = {}
        if policy.optimizer != "normuon":
            override["optimizer"] = "adam"
        if policy.lr_source != "--lr":
            override["max_lr"] = policy.max_lr
        if policy.min_lr_source != "--min-lr":
            override["min_lr"] = policy.min_lr
        if not policy.decays:
            override["wd_mult"] = 0.0
        if not override:
            continue

        def applies(param: torch.Tensor, name: str, wanted: ParameterPolicy = policy) -> bool:
            return policy_of(param, name) == wanted

        result[key_of(str(policy), applies)] = override
    return result


def _is_routed_expert(name: str) -> bool:
    parts = name.split(".")
    return "experts" in parts and "shared_experts" not in parts
