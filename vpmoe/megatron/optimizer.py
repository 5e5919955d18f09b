"""A further optimizer in Megatron's construction of them, and in its checkpoints.

Megatron's registry of further optimizers insists on the emerging-optimizers package, so the
function that builds the optimizer is replaced where Megatron's training loop calls it. Everything
around the step is Megatron's: mixed precision, clipping, schedules, checkpoints.
"""

from __future__ import annotations

import copy
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, ParamKey
from megatron.core.optimizer.optimizer import (
    ChainedOptimizer,
    Float16OptimizerWithFloat16Params,
    FP32Optimizer,
)
from megatron.core.process_groups_config import ProcessGroupCollection

from vpmoe.megatron.contract import Contract, OnlyCalls, Reads, Takes

_BUILD = "megatron.core.optimizer"
_OPTIMIZER = "megatron.core.optimizer.optimizer"

CONSTRUCTION = Contract(
    "construction of optimizers",
    "vpMoE replaces `get_megatron_optimizer` and the whole step's CUDA graph where Megatron's loop "
    "calls them, for `--optimizer normuon` alone.",
    "See how `setup_model_and_optimizer` and `train` of this version build and graph the "
    "optimizer; a registry that takes a class of ours would make the replacement needless.",
    (
        Takes("megatron.core.optimizer:get_megatron_optimizer", ("config", "model_chunks")),
        Reads(
            "megatron.training.training:setup_model_and_optimizer",
            names=("get_megatron_optimizer",),
        ),
        Takes(
            "megatron.core.optimizer.optimizer_cuda_graph:OptimizerCudaGraphWrapper.__init__",
            ("optimizer_step_func",),
        ),
        Reads("megatron.training.training:train", names=("OptimizerCudaGraphWrapper",)),
    ),
)

PARAMETER_GROUPS = Contract(
    "groups of parameters",
    "vpMoE has Megatron group the parameters by overrides of its own, wraps NorMuon's groups "
    "itself, and has Megatron wrap AdamW's.",
    "Compare `get_megatron_optimizer` of this version with `build_chain`.",
    (
        Takes(f"{_BUILD}:_get_param_groups", ("model_chunks", "config", "config_overrides")),
        Reads(f"{_BUILD}:_get_param_groups", names=("is_expert_parallel", "wd_mult")),
        Takes(
            f"{_BUILD}:_get_megatron_optimizer_based_on_param_groups",
            ("config", "model_chunks", "param_groups"),
            ("model_parallel_group", "pg_collection"),
        ),
        Takes(f"{_BUILD}:ParamKey", keywords=("with_name_predicate",)),
        Takes("megatron.core.optimizer.optimizer_config:ParamWithNamePredicate", ("name", "fn")),
        Takes(f"{_OPTIMIZER}:FP32Optimizer.__init__", ("optimizer", "config", "init_state_fn")),
        Takes(
            f"{_OPTIMIZER}:Float16OptimizerWithFloat16Params.__init__",
            ("optimizer", "config", "grad_scaler", "init_state_fn"),
        ),
        Reads(
            f"{_OPTIMIZER}:MegatronOptimizer.get_grad_stats_parallel_group",
            names=("grad_stats_parallel_group",),
        ),
        Reads(
            f"{_OPTIMIZER}:MegatronOptimizer._filter_grads_for_norm",
            names=("tp_group", "expert_tp_group"),
            former=f"{_OPTIMIZER}:MegatronOptimizer.get_main_grads_for_grad_norm",
        ),
    ),
)

FINITE_STEP = Contract(
    "steps on a gradient that is not finite",
    "vpMoE's chain of optimizers leaves out a step whose gradient norm is not finite: Megatron's "
    "chain computes the norm in `step`, and only then calls `step_with_ready_grads`. It keeps the "
    "model's saved buffers when a step clears its gradients, and puts them back if the step is "
    "left out: Megatron has moved the experts' bias by then.",
    "Compare `ChainedOptimizer.step` and `train_step` of this version with `FiniteChain`.",
    (
        Takes(f"{_OPTIMIZER}:ChainedOptimizer.__init__", ("chained_optimizers",)),
        Takes(f"{_OPTIMIZER}:ChainedOptimizer.get_grad_norm"),
        Takes(f"{_OPTIMIZER}:ChainedOptimizer.step_with_ready_grads"),
        Reads(
            f"{_OPTIMIZER}:ChainedOptimizer.step",
            names=("get_grad_norm", "step_with_ready_grads"),
        ),
        Takes(f"{_OPTIMIZER}:ChainedOptimizer.zero_grad", ("set_to_none",)),
        Takes(f"{_OPTIMIZER}:ChainedOptimizer.step"),
        Reads("megatron.training.training:train_step", names=("zero_grad", "step")),
    ),
)

OPTIMIZER_STATE = Contract(
    "optimizer state in a checkpoint",
    "NorMuon's second moment has a row's shape, not its weight's: vpMoE takes it out while "
    "Megatron describes the rest, and adds it. It calls with `is_loading=False`, since all that "
    "this would do is to initialise the state, which is done before.",
    "Compare `sharded_state_dict` of `FP32Optimizer` and `Float16OptimizerWithFloat16Params` of "
    "this version with `_ShardedRowState`.",
    (
        *(
            fact
            for kind in ("FP32Optimizer", "Float16OptimizerWithFloat16Params")
            for fact in (
                Takes(
                    f"{_OPTIMIZER}:{kind}.sharded_state_dict",
                    ("model_sharded_state_dict", "is_loading", "metadata"),
                ),
                OnlyCalls(
                    f"{_OPTIMIZER}:{kind}.sharded_state_dict",
                    condition="is_loading",
                    callee="init_state_fn",
                ),
            )
        ),
        Reads(
            f"{_OPTIMIZER}:FP32Optimizer.sharded_state_dict",
            names=("get_parameters", "get_param_id_to_sharded_param_map"),
        ),
        Reads(
            f"{_OPTIMIZER}:Float16OptimizerWithFloat16Params.sharded_state_dict",
            names=("float16_groups", "get_param_id_to_sharded_param_map", "optimizer"),
        ),
        Takes(
            "megatron.core.dist_checkpointing.optimizer:get_param_id_to_sharded_param_map",
            ("model_sharded_state_dict", "optim_params_iter"),
        ),
        Takes(
            "megatron.core.dist_checkpointing.optimizer:optim_state_to_sharding_state",
            ("optim_state_dict", "id_to_sharded_param_map"),
        ),
    ),
)

CONTRACTS = (CONSTRUCTION, PARAMETER_GROUPS, FINITE_STEP, OPTIMIZER_STATE)

_sharded_by_number = OPTIMIZER_STATE.take("get_param_id_to_sharded_param_map")
_ParamWithNamePredicate = PARAMETER_GROUPS.take("ParamWithNamePredicate")


def install_optimizer(kind: str, build: Callable[..., MegatronOptimizer]) -> None:
    """Makes Megatron's training loop build a further `--optimizer`; idempotent.

    Args:
        kind: the flag's value. The optimizer graphs its own step, if at all: a graph of the whole
            step would step on NaN, and keep the decay.
        build: called with Megatron's optimizer configuration, the model chunks, Megatron's
            arguments and its process groups or None.
    """
    import megatron.training.training as training

    original = training.get_megatron_optimizer
    if kind in getattr(original, "further_kinds", ()):
        return
    CONSTRUCTION.check()

    @functools.wraps(original)
    def get_megatron_optimizer(
        config: OptimizerConfig, model_chunks: list[Any], *args: Any, **kwargs: Any
    ) -> MegatronOptimizer:
        if config.optimizer != kind:
            built: MegatronOptimizer = original(config, model_chunks, *args, **kwargs)
            return built
        from megatron.training import get_args

        return build(config, model_chunks, get_args(), kwargs.get("pg_collection"))

    get_megatron_optimizer.further_kinds = (kind,)  # type: ignore[attr-defined]
    training.get_megatron_optimizer = get_megatron_optimizer
    graph_whole_step = training.OptimizerCudaGraphWrapper

    def graph_step(step: Any, *args: Any, **kwargs: Any) -> Any:
        from megatron.training import get_args

        if get_args().optimizer == kind:
            return step
        return graph_whole_step(step, *args, **kwargs)

    training.OptimizerCudaGraphWrapper = graph_step


def key_of(name: str, applies: Callable[[torch.Tensor, str], bool]) -> ParamKey:
    """The key of an override for the parameters, and names, that `applies` is true of."""
    return ParamKey(with_name_predicate=_ParamWithNamePredicate(name=name, fn=applies))


def build_chain(
    config: OptimizerConfig,
    model_chunks: Sequence[Any],
    overrides: dict[ParamKey, dict[str, Any]],
    groups: ProcessGroupCollection,
    wrap: Callable[[list[dict[str, Any]]], MegatronOptimizer],
) -> MegatronOptimizer:
    """An optimizer of one's own for some parameters, and Megatron's AdamW for the rest.

    Args:
        config: Megatron's optimizer configuration.
        model_chunks: this rank's model chunks.
        overrides: by key, what Megatron's groups get; `optimizer` = "adam" takes AdamW.
        groups: process groups.
        wrap: makes the optimizer of groups of parameters, for Megatron.

    Returns:
        Megatron's chain over all of them.
    """
    for contract in (PARAMETER_GROUPS, FINITE_STEP, OPTIMIZER_STATE):
        contract.check()
    param_groups = megatron_optimizer._get_param_groups(list(model_chunks), config, overrides)
    buckets: defaultdict[tuple[bool, bool], list[dict[str, Any]]] = defaultdict(list)
    for group in param_groups:
        buckets[group.get("optimizer") == "adam", group["is_expert_parallel"]].append(group)
    optimizers = []
    for (is_adam, is_expert), members in buckets.items():
        stats_group = groups.tp_ep_pp if is_expert else groups.mp
        if not is_adam:
            wrapped = wrap(members)
            wrapped.grad_stats_parallel_group = stats_group
            wrapped.tp_group = groups.tp
            wrapped.expert_tp_group = groups.expt_tp
            optimizers.append(wrapped)
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
    return FiniteChain(optimizers, model_chunks)


class FiniteChain(ChainedOptimizer):
    """Megatron's chain, which leaves out a step whose gradient norm is not finite.

    Weights, optimizer state and the model's saved buffers, which are the routers' expert biases,
    stay as they were. Megatron counts such a step as a skipped iteration. The norm is one that its
    loop reads anyway.

    Args:
        optimizers: what is chained.
        model_chunks: the model that they step.
    """

    def __init__(
        self, optimizers: list[MegatronOptimizer], model_chunks: Sequence[torch.nn.Module]
    ) -> None:
        super().__init__(optimizers)
        self._model = tuple(model_chunks)
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, at the beginning of a step, and keeps the model's buffers.

        Where Megatron runs a step again to see whether a NaN comes back, they begin as they were.
        """
        super().zero_grad(set_to_none)
        self.put_back()
        self._kept = [(buffer, buffer.clone()) for buffer in _saved_buffers(self._model)]

    @torch.no_grad()
    def put_back(self) -> None:
        """Undoes what a step that was not taken did to the model's saved buffers.

        That is the balancing of experts by tokens that NaN may have routed.
        """
        for buffer, before in self._kept:
            buffer.copy_(before)
        self._kept = []

    @torch.no_grad()
    def step(self) -> Any:
        """Megatron's step.

        Returns:
            Whether it was taken, the gradient norm, and Megatron's number of zeros.
        """
        taken, *rest = super().step()
        if taken:
            self._kept = []
        self.put_back()
        return (taken, *rest)

    def get_grad_norm(self) -> Any:
        """Norm over all chained optimizers' gradients, before clipping."""
        self._last_norm = super().get_grad_norm()
        return self._last_norm

    def step_with_ready_grads(self) -> bool:
        """Steps all optimizers; False, and nothing changed, for a NaN or infinite gradient."""
        if not math.isfinite(self._last_norm):
            return False
        return bool(super().step_with_ready_grads())


def _saved_buffers(chunks: Iterable[torch.nn.Module]) -> Iterable[torch.Tensor]:
    """The buffers that a checkpoint holds: what a model learns besides its parameters."""
    for chunk in chunks:
        for module in chunk.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    yield buffer


class _ShardedRowState:
    """Adds a state [..., m, 1] to a Megatron optimizer's checkpoint; its others are weight-shaped.

    It is sharded as its weight's rows are. Ranks that share rows, since columns are sharded, hold
    the same.
    """

    optimizer: Any
    row_state: str

    def sharded_state_dict(
        self,
        model_sharded_state_dict: Any,
        is_loading: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> Any:
        """State for `megatron.core.dist_checkpointing`."""
        self.optimizer.init_state()
        params = [param for group in self.optimizer.param_groups for param in group["params"]]
        rows = [self.optimizer.state[param].pop(self.row_state) for param in params]
        try:
            # All that `is_loading` asks for is to initialise the state, which is done.
            result = super().sharded_state_dict(  # type: ignore[misc]
                model_sharded_state_dict, False, metadata
            )
        finally:
            for param, row in zip(params, rows, strict=True):
                self.optimizer.state[param][self.row_state] = row
        sharded = _sharded_by_number(model_sharded_state_dict, self._model_parameters())
        state = result.get("optimizer", result)["state"]
        for index, row in enumerate(rows):
            state[index][self.row_state] = _sharded_rows(self.row_state, sharded[index], row)
        return result

    def _model_parameters(self) -> Iterable[torch.Tensor]:
        """The model's parameters, in the order of the optimizer's."""
        raise NotImplementedError


class _FP32RowState(_ShardedRowState, FP32Optimizer):
    def _model_parameters(self) -> Iterable[torch.Tensor]:
        parameters: list[torch.Tensor] = self.get_parameters()
        return parameters


class _BF16RowState(_ShardedRowState, Float16OptimizerWithFloat16Params):
    def _model_parameters(self) -> Iterable[torch.Tensor]:
        return [
            param
            for bf16, fp32 in zip(self.float16_groups, self.fp32_from_fp32_groups, strict=True)
            for param in (*bf16, *fp32)
        ]


def wrap_with_row_state(
    optimizer: Any, config: OptimizerConfig, row_state: str
) -> MegatronOptimizer:
    """Puts Megatron's mixed precision and checkpoints around a torch optimizer.

    Args:
        optimizer: has `init_state()`, and of each parameter [..., m, n] a state [..., m, 1].
        config: Megatron's.
        row_state: that state's name; the others have their parameter's shape.

    Returns:
        Megatron's optimizer.
    """

    def init_state(inner: Any, _: OptimizerConfig | None = None) -> None:
        inner.init_state()

    wrapped: MegatronOptimizer = (
        _BF16RowState(optimizer, config, None, init_state)
        if config.bf16
        else _FP32RowState(optimizer, config, init_state)
    )
    wrapped.row_state = row_state
    return wrapped


def _sharded_rows(name: str, weight: ShardedTensor, rows: torch.Tensor) -> ShardedTensor:
    """A row state's place in a checkpoint, from its weight's: one column, and the weight's rows."""
    if not isinstance(weight, ShardedTensor):
        raise TypeError(f"a weight with a {name} is saved as {type(weight).__name__}, no tensor")
    replica = weight.replica_id if isinstance(weight.replica_id, tuple) else (weight.replica_id,)
    columns = weight.local_shape[-1]
    sharded = replace(
        weight,
        key=f"optimizer.state.{name}.{weight.key}",
        data=rows,
        dtype=rows.dtype,
        local_shape=tuple(rows.shape),
        global_shape=(*weight.global_shape[:-1], 1),
        global_offset=(*weight.global_offset[:-1], 0),
        axis_fragmentations=(*weight.axis_fragmentations[:-1], 1),
        replica_id=(*replica, weight.global_offset[-1] // columns),
    )
    sharded.validate_metadata_integrity()
    return sharded
