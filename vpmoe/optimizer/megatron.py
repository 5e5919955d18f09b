"""NorMuon in Megatron's optimizer construction: `--optimizer normuon`.

Megatron's registry of further optimizers insists on the emerging-optimizers package, so the
function that builds the optimizer is replaced where Megatron's training loop calls it. Everything
around the step is Megatron's: mixed precision, clipping, schedules, checkpoints.
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.optimizer import get_param_id_to_sharded_param_map
from megatron.core.optimizer.optimizer import (
    ChainedOptimizer,
    Float16OptimizerWithFloat16Params,
    FP32Optimizer,
    MegatronOptimizer,
)
from megatron.core.optimizer.optimizer_config import (
    OptimizerConfig,
    ParamKey,
    ParamWithNamePredicate,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.utils import get_model_config, get_pg_size

from vpmoe.optimizer.chunks import MatrixLayout
from vpmoe.optimizer.normuon import NorMuon
from vpmoe.optimizer.polar_express import load_coefficients, polar_express_coefficients

_SECOND = "second_momentum"


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
    """What the matrices in one of NorMuon's parameters are.

    Args:
        name: qualified name in the model.
        param: the parameter, with Megatron's attributes.
        config: the model's configuration, for the blocks of `linear_qkv.weight`.
        groups: process groups; None without tensor parallelism.
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
    import megatron.training.training as training

    original = training.get_megatron_optimizer
    if getattr(original, "builds_normuon", False):
        return

    @functools.wraps(original)
    def get_megatron_optimizer(
        config: OptimizerConfig, model_chunks: list[Any], *args: Any, **kwargs: Any
    ) -> MegatronOptimizer:
        if config.optimizer != "normuon":
            built: MegatronOptimizer = original(config, model_chunks, *args, **kwargs)
            return built
        from megatron.training import get_args

        return build_optimizer(config, model_chunks, get_args(), kwargs.get("pg_collection"))

    get_megatron_optimizer.builds_normuon = True  # type: ignore[attr-defined]
    training.get_megatron_optimizer = get_megatron_optimizer
    graph_whole_step = training.OptimizerCudaGraphWrapper

    def graph_step(step: Any, *args: Any, **kwargs: Any) -> Any:
        from megatron.training import get_args

        # NorMuon graphs its own part: the whole step's graph would step on NaN, and keep the decay.
        if get_args().optimizer == "normuon":
            return step
        return graph_whole_step(step, *args, **kwargs)

    training.OptimizerCudaGraphWrapper = graph_step


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
    param_groups = megatron_optimizer._get_param_groups(
        list(model_chunks), config, _overrides(names, merged)
    )
    buckets: defaultdict[tuple[str, bool], list[dict[str, Any]]] = defaultdict(list)
    for group in param_groups:
        key = (group.get("optimizer", "normuon"), group["is_expert_parallel"])
        buckets[key].append(group)
    model_config = get_model_config(model_chunks[0])
    optimizers = []
    for (kind, is_expert), members in buckets.items():
        stats_group = groups.tp_ep_pp if is_expert else groups.mp
        if kind == "normuon":
            optimizers.append(
                _wrap_normuon(config, members, names, merged, model_config, groups, stats_group)
            )
            continue
        adam = copy.copy(config)
        adam.optimizer = "adam"
        # A few launches, for which a graph would round the bias correction otherwise.
        adam.optimizer_cuda_graph = False
        wrapped = megatron_optimizer._get_megatron_optimizer_based_on_param_groups(
            config=adam,
            model_chunks=list(model_chunks),
            param_groups=members,
            model_parallel_group=stats_group,
            pg_collection=groups,
        )
        # The chain insists on one configuration.
        wrapped.config = config
        optimizers.append(wrapped)
    return FiniteChain(optimizers)


class FiniteChain(ChainedOptimizer):
    """Megatron's chain, which leaves weights and state alone when the gradient norm is not finite.

    Megatron counts such a step as a skipped iteration. The norm is one that its loop reads anyway.
    """

    def get_grad_norm(self) -> Any:
        """Norm over all chained optimizers' gradients, before clipping."""
        self._last_norm = super().get_grad_norm()
        return self._last_norm

    def step_with_ready_grads(self) -> bool:
        """Steps all optimizers; False, and nothing changed, for a NaN or infinite gradient."""
        if not math.isfinite(self._last_norm):
            return False
        return bool(super().step_with_ready_grads())


class _ShardedRowState:
    """Adds v [..., m, 1] to a Megatron optimizer's checkpoint, whose other state is weight-shaped.

    v is sharded as its weight's rows are. Ranks that share rows, since columns are sharded, hold
    the same v.
    """

    optimizer: Any

    def sharded_state_dict(
        self,
        model_sharded_state_dict: Any,
        is_loading: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> Any:
        """State for `megatron.core.dist_checkpointing`."""
        self.optimizer.init_state()
        params = [param for group in self.optimizer.param_groups for param in group["params"]]
        seconds = [self.optimizer.state[param].pop(_SECOND) for param in params]
        try:
            result = super().sharded_state_dict(  # type: ignore[misc]
                model_sharded_state_dict, False, metadata
            )
        finally:
            for param, second in zip(params, seconds, strict=True):
                self.optimizer.state[param][_SECOND] = second
        sharded = get_param_id_to_sharded_param_map(
            model_sharded_state_dict, self._model_parameters()
        )
        state = result.get("optimizer", result)["state"]
        for index, second in enumerate(seconds):
            state[index][_SECOND] = _sharded_rows(sharded[index], second)
        return result

    def _model_parameters(self) -> Iterable[torch.Tensor]:
        """The model's parameters, in the order of the optimizer's."""
        raise NotImplementedError


class _FP32NorMuon(_ShardedRowState, FP32Optimizer):
    def _model_parameters(self) -> Iterable[torch.Tensor]:
        parameters: list[torch.Tensor] = self.get_parameters()
        return parameters


class _BF16NorMuon(_ShardedRowState, Float16OptimizerWithFloat16Params):
    def _model_parameters(self) -> Iterable[torch.Tensor]:
        return [
            param
            for bf16, fp32 in zip(self.float16_groups, self.fp32_from_fp32_groups, strict=True)
            for param in (*bf16, *fp32)
        ]


def _wrap_normuon(
    config: OptimizerConfig,
    param_groups: list[dict[str, Any]],
    names: Mapping[torch.Tensor, str],
    options: argparse.Namespace,
    model_config: Any,
    groups: ProcessGroupCollection,
    stats_group: torch.distributed.ProcessGroup,
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

    def init_state(optimizer: NorMuon, _: OptimizerConfig | None = None) -> None:
        optimizer.init_state()

    wrapped: MegatronOptimizer = (
        _BF16NorMuon(normuon, config, None, init_state)
        if config.bf16
        else _FP32NorMuon(normuon, config, init_state)
    )
    wrapped.grad_stats_parallel_group = stats_group
    wrapped.tp_group = groups.tp
    wrapped.expert_tp_group = groups.expt_tp
    return wrapped


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

        key = ParamKey(with_name_predicate=ParamWithNamePredicate(name=str(policy), fn=applies))
        result[key] = override
    return result


def _is_routed_expert(name: str) -> bool:
    parts = name.split(".")
    return "experts" in parts and "shared_experts" not in parts


def _sharded_rows(weight: ShardedTensor, second: torch.Tensor) -> ShardedTensor:
    """v's place in a checkpoint, from its weight's: one column, and rows where the weight has."""
    if not isinstance(weight, ShardedTensor):
        raise TypeError(f"NorMuon's weight is saved as {type(weight).__name__}, not ShardedTensor")
    replica = weight.replica_id if isinstance(weight.replica_id, tuple) else (weight.replica_id,)
    columns = weight.local_shape[-1]
    sharded = replace(
        weight,
        key=f"optimizer.state.{_SECOND}.{weight.key}",
        data=second,
        dtype=second.dtype,
        local_shape=tuple(second.shape),
        global_shape=(*weight.global_shape[:-1], 1),
        global_offset=(*weight.global_offset[:-1], 0),
        axis_fragmentations=(*weight.axis_fragmentations[:-1], 1),
        replica_id=(*replica, weight.global_offset[-1] // columns),
    )
    sharded.validate_metadata_integrity()
    return sharded
