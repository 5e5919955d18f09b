"""Places in Megatron that vpMoE's cases watch, and that its faults plant bugs in.

A case wraps one for the length of a run: `TRAIN_STEP.wrapped(wrap)`. A fault names one:
`patched(*TRAIN_STEP.place, wrap)`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vpmoe.megatron.contract import Contract, Exists, Fact, Takes

_WHY = "vpMoE's cases watch this place, or its faults plant bugs there"
_REMEDY = (
    "Find where this version does the same, and move the point in vpmoe/megatron/points.py; "
    "the cases or faults that use it say what they need."
)

POINTS: dict[tuple[str, str], Point] = {}


@dataclass(frozen=True)
class Point:
    """A name in one of Megatron's modules, where callers look it up.

    Attributes:
        module: Megatron's.
        name: in it; dots go into classes.
        contract: what is relied on.
    """

    module: str
    name: str
    contract: Contract

    @property
    def place(self) -> tuple[str, str]:
        """The module and the name, as arguments of `vpmoe.cases.faults.planting`."""
        return self.module, self.name

    @contextlib.contextmanager
    def wrapped(self, wrap: Callable[[Any], Any]) -> Iterator[None]:
        """Puts `wrap(what is there)` there for the length of the context.

        Args:
            wrap: given the original, returns what takes its place.

        Raises:
            MegatronChangedError: the place is not what the contract says.
        """
        self.contract.check()
        owner: Any = importlib.import_module(self.module)
        *outer, attribute = self.name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        there = getattr(owner, attribute)
        changed = wrap(there)
        if callable(changed) and callable(there) and not hasattr(changed, "__wrapped__"):
            functools.update_wrapper(changed, there)
        from vpmoe.runtime.patches import replaced  # imports torch, which a declaration needs not

        with replaced(owner, attribute, changed):
            yield

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call of the function by their names, however they were passed."""
        signature = inspect.signature(self.contract.facts[0].find())
        return signature.bind(*args, **kwargs).arguments


def _point(
    module: str, name: str, positional: tuple[str, ...] = (), keywords: tuple[str, ...] = ()
) -> Point:
    """Declares a function, by the parameters that those who wrap it name or count."""
    return _declare(module, name, Takes(f"{module}:{name}", positional, keywords))


def _declare(module: str, name: str, fact: Fact) -> Point:
    contract = Contract(f"point {name}", f"{_WHY}: `{fact.place}`.", _REMEDY, (fact,))
    POINTS[module, name] = Point(module, name, contract)
    return POINTS[module, name]


_TRAINING = "megatron.training.training"
_OPTIMIZER = "megatron.core.optimizer.optimizer"
_SCHEDULER = "megatron.core.optimizer_param_scheduler"
_FINALIZE = "megatron.core.distributed.finalize_model_grads"
_GPT_DATASET = "megatron.core.datasets.gpt_dataset"
_LAYERS = "megatron.core.tensor_parallel.layers"
_MOE = "megatron.core.transformer.moe"

# The loop.
SETUP = _point(_TRAINING, "setup_model_and_optimizer")
TRAIN_STEP = _point(
    _TRAINING,
    "train_step",
    ("forward_step_func", "data_iterator", "model", "optimizer", "opt_param_scheduler"),
    ("iteration",),
)
TRAINING_LOG = _point(
    _TRAINING,
    "training_log",
    ("loss_dict", "total_loss_dict"),
    ("learning_rate", "iteration", "grad_norm"),
)
EVALUATE = _point(_TRAINING, "evaluate", ("forward_step_func", "data_iterator", "model"))
FINALIZE_GRADS = _point(_TRAINING, "finalize_model_grads", ("model",))
SAVE_CHECKPOINT = _point(
    _TRAINING, "save_checkpoint", ("iteration", "model", "optimizer", "opt_param_scheduler")
)
LOAD_CHECKPOINT = _point(_TRAINING, "load_checkpoint", ("ddp_model", "optimizer"))
PRINT_LAST = _point(_TRAINING, "print_rank_last", ("message",))
TENSORBOARD = _point(_TRAINING, "get_tensorboard_writer")

# Gradients and optimizers.
FINISH_SYNC = _point(
    "megatron.core.distributed.distributed_data_parallel",
    "DistributedDataParallel.finish_grad_sync",
)
REDUCE_REPLICATED = _point(_FINALIZE, "_allreduce_non_tensor_model_parallel_grads", ("model",))
REDUCE_OVER_STAGES = _point(_FINALIZE, "_allreduce_conditional_embedding_grads", ("model",))
UPDATE_EXPERT_BIAS = _point(
    _FINALIZE,
    "get_updated_expert_bias",
    ("tokens_per_expert", "expert_bias", "expert_bias_update_rate"),
)
GRAD_NORM = _point(
    _OPTIMIZER, "get_grad_norm_fp32", ("grads_for_norm",), ("grad_stats_parallel_group",)
)
CLIP = _point(_OPTIMIZER, "clip_grad_by_total_norm_fp32", ("parameters",))
PREPARE_GRADS = _point(_OPTIMIZER, "FP32Optimizer.prepare_grads")
STEP_READY = _point(_OPTIMIZER, "FP32Optimizer.step_with_ready_grads")
LEARNING_RATE = _point(_SCHEDULER, "OptimizerParamScheduler.get_lr", ("param_group",))
WEIGHT_DECAY = _point(_SCHEDULER, "OptimizerParamScheduler.get_wd")
LOAD_SCHEDULE = _point(_SCHEDULER, "OptimizerParamScheduler.load_state_dict", ("state_dict",))
SAMPLES_OF_RANK = _point(
    "megatron.training.datasets.data_samplers", "MegatronPretrainingSampler.get_start_end_idx"
)

# Order of documents and samples over epochs.
DOCUMENT_ORDER = _point(
    _GPT_DATASET,
    "_build_document_index",
    ("documents", "num_epochs", "numpy_random_state", "separate_final_epoch"),
)
SAMPLE_ORDER = _point(
    _GPT_DATASET, "_build_shuffle_index", ("num_samples", "total_size", "numpy_random_state")
)

# Checkpoints.
SAVE_SHARDED = _point(
    "megatron.core.dist_checkpointing", "save", ("sharded_state_dict", "checkpoint_dir")
)

# Recomputation.
RESTORE_RANDOM = _point(
    "megatron.core.tensor_parallel.random",
    "_set_all_rng_states",
    ("cpu_rng_state", "cuda_rng_state", "cuda_rng_state_tracker"),
)

# Layers.
COLUMN_LINEAR = _point(_LAYERS, "ColumnParallelLinear.forward", ("input_",))
LINEAR = _point(
    _LAYERS,
    "linear_with_grad_accumulation_and_async_allreduce",
    ("input", "weight", "bias"),
)
MODEL_LOSS = _point(
    "megatron.core.models.gpt.gpt_model",
    "GPTModel.compute_language_model_loss",
    ("labels", "logits"),
)
DENSE = _point("megatron.core.transformer.mlp", "MLP.forward", ("hidden_states",))
SQUARED_RELU = _declare(
    "megatron.core.activations",
    "squared_relu",
    Exists("megatron.core.activations:squared_relu"),
)

EMBEDDING_SCATTER = _point(_LAYERS, "reduce_scatter_to_sequence_parallel_region", ("input_",))

# Experts.
ROUTER_INIT = _point(f"{_MOE}.router", "TopKRouter.__init__", ("config",))
GATING = _point(f"{_MOE}.router", "TopKRouter.gating", ("input",))
Z_LOSS = _point(f"{_MOE}.router", "TopKRouter.apply_z_loss", ("logits", "padding_mask"))
BALANCE_COEFFICIENT = _point(f"{_MOE}.router", "TopKRouter.get_aux_loss_coeff", ("aux_loss_type",))
BALANCING_LOSS = _point(
    f"{_MOE}.router",
    "switch_load_balancing_loss_func",
    keywords=("probs", "tokens_per_expert"),
)
ROUTING = _point(
    f"{_MOE}.router",
    "topk_routing_with_score_function",
    ("logits", "topk"),
    ("num_groups", "group_topk", "scaling_factor", "score_function", "expert_bias"),
)
GROUP_LIMITED = _point(f"{_MOE}.moe_utils", "group_limited_topk", ("scores", "topk"))
EXPERTS = _point(
    f"{_MOE}.experts",
    "SequentialMLP.forward",
    ("permuted_local_hidden_states", "tokens_per_expert", "permuted_probs"),
)
SHARED_EXPERT = _point(f"{_MOE}.shared_experts", "SharedExpertMLP.forward", ("hidden_states",))

CONTRACTS = tuple(point.contract for point in POINTS.values())
