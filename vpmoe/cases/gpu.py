"""vpMoE's cases on one GPU, on two and on four: bf16, in deterministic mode."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from validation.cases.base import Case, Invariant, Needs
from vpmoe.cases.targets import DECODE, LEADING, MODULES, PACED, TRAINING, WARM

# What deterministic mode asks of the environment.
DETERMINISTIC = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NCCL_ALGO": "Ring",
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
}
# Megatron asks for it where tensor parallelism and sequence parallelism meet.
_ONE_QUEUE = {**DETERMINISTIC, "CUDA_DEVICE_MAX_CONNECTIONS": "1"}

# Compiling Megatron's fused functions takes longer than the rest of a few steps.
_NOT_COMPILED = {"compiled": False}

_RECORDED = ("--log-interval", "1")

FUSED = (*("--attention-kernel", "triton", "--expert-kernel", "fused", "--loss-kernel", "chunked"),)

# As it is trained where speed counts: graphs, and enough tokens, keep the device busy.
GRAPHED = ("--cuda-graph-impl", "full_iteration", "--optimizer-cuda-graph")
_FAST = (*GRAPHED, "--no-check-for-nan-in-loss-and-grad")

# Another layout sums bf16 numbers in another order, and rounds the sums; nothing else may differ.
# In multiples of bf16's epsilon.
_EPSILON = 2.0**-8
_SAME_TRAINING = {
    "lm_loss": _EPSILON / 2,
    "grad_norm": 8 * _EPSILON,
    "learning_rate": 0.0,
}
# Split tensors round every activation otherwise, and NorMuon enlarges what that leaves in
# directions which the gradient hardly has.
_SPLIT = {**_SAME_TRAINING, "grad_norm": 16 * _EPSILON}

# Each process's parts of the gradients, within a few roundings of everything that they depend on;
# initial weights are drawn whole, and cut. Ranks that have the same part must have the same bits.
_SHARDS = {"init:*.value*": 0.0, "reduction:*.weight.grad*": 32 * _EPSILON}


def _training(
    name: str,
    description: str,
    preset: str,
    *flags: str,
    lane: str = "h200",
    processes: int = 1,
    traced_steps: Sequence[int] = (1,),
    invariant: Invariant | None = None,
    paced: Sequence[str] = (),
    environment: Mapping[str, str] = DETERMINISTIC,
    more: Mapping[str, Any] | None = None,
) -> Case:
    """A deterministic training on the shipped conversations, and what must be its equal."""
    return Case(
        name=name,
        description=description,
        lanes=(lane,),
        target=TRAINING,
        settings={
            "preset": preset,
            "conversations": "data/sample/conversations.jsonl",
            "flags": [*flags, *_RECORDED, "--deterministic-mode"],
            "environment": environment,
            **(more or {}),
        },
        processes=processes,
        traced_steps=traced_steps,
        preload=WARM,
        needs=Needs(gpus=processes, modules=(*MODULES, "triton")),
        invariant=invariant,
        decode=DECODE,
        leading=LEADING,
        throughput=PACED if paced else None,
        paced={"flags": [*flags, *paced]} if paced else {},
        deterministic=True,
        equivalents=_equivalents(flags, environment),
    )


def _equivalents(
    flags: Sequence[str], environment: Mapping[str, str]
) -> Mapping[str, Mapping[str, Any]]:
    """What changes rounding alone, one by one and in pairs.

    Another kernel of the attention is none, though it should round only: expert choices turn over,
    and tolerances that cover it let anything pass (seen on an H100: records differ by their size).
    Nor is one that records something else in a module's place: experts that weigh their rows
    earlier, or TPA composed with its rotation, which is what `auto` takes without determinism.
    """
    plain = (*flags, *_RECORDED)
    deterministic = (*plain, "--deterministic-mode")
    changes: dict[str, dict[str, Any]] = {"small cuBLAS workspace": {"workspace": ":16:8"}}
    if set(FUSED) <= set(flags):
        changes["all logits"] = {"loss": ("--loss-kernel", "full")}
        changes["not deterministic"] = {"flags": plain}
    else:
        changes["chunked loss"] = {"loss": ("--loss-kernel", "chunked")}

    def settings(change: Mapping[str, Any]) -> Mapping[str, Any]:
        workspace = change.get("workspace", environment["CUBLAS_WORKSPACE_CONFIG"])
        return {
            "flags": [*change.get("flags", deterministic), *change.get("loss", ())],
            "environment": {**environment, "CUBLAS_WORKSPACE_CONFIG": workspace},
        }

    pairs = itertools.combinations(changes, 2)
    both = {f"{one}, {other}": changes[one] | changes[other] for one, other in pairs}
    return {name: settings(change) for name, change in (changes | both).items()}


def _on_two(
    name: str, description: str, *flags: str, same: Mapping[str, float] = _SAME_TRAINING
) -> Case:
    """vpMoE-dev on two GPUs: the training of one."""
    return _training(
        name,
        f"vpMoE-dev on two GPUs, {description}: the training of one",
        "configs/vpmoe-dev.toml",
        *_SHORT,
        *flags,
        lane="h200-x2",
        processes=2,
        invariant=Invariant(reference="dev_one", curves=same),
        environment=_ONE_QUEUE,
        more=_NOT_COMPILED,
    )


def _on_four(
    name: str, description: str, *flags: str, same: Mapping[str, float] = _SAME_TRAINING
) -> Case:
    """vpMoE-dev on four GPUs, of which two parallelisms meet: the training of one."""
    return _training(
        name,
        f"vpMoE-dev on four GPUs, {description}: the training of one",
        "configs/vpmoe-dev.toml",
        *_SINGLE,
        *flags,
        lane="h200-x4",
        processes=4,
        invariant=Invariant(reference="dev_one_of_four", curves=same, shards=_SHARDS),
        environment=_ONE_QUEUE,
        more={**_NOT_COMPILED, "canonical": True},
    )


_TP_SP = ("--tensor-model-parallel-size", "2", "--sequence-parallel")
_EP = ("--expert-model-parallel-size", "2")
_PP = ("--pipeline-model-parallel-size", "2")

_WIDE = (
    *("--num-layers", "2", "--moe-layer-freq", "([1]*2)"),
    *("--window-attn-skip-freq", "2", "--no-rope-freq", "2"),
    *("--train-iters", "4", "--micro-batch-size", "1", "--global-batch-size", "2"),
)
_SHORT = ("--train-iters", "4", "--micro-batch-size", "2", "--global-batch-size", "4")
_SINGLE = ("--train-iters", "4", "--micro-batch-size", "1", "--global-batch-size", "4")

CASES = (
    _training(
        "dev_moe",
        "vpMoE-dev in deterministic bf16 on one GPU, on the shipped conversations",
        "configs/vpmoe-dev.toml",
        *("--train-iters", "50", "--micro-batch-size", "4", "--global-batch-size", "4"),
        paced=(*_FAST, "--micro-batch-size", "8", "--global-batch-size", "8"),
    ),
    _training(
        "wide_pair",
        "a local and a global layer of vpMoE-6B, 256 experts each, in bf16 on one GPU",
        "configs/vpmoe-6b.toml",
        *_WIDE,
        paced=(*_FAST, "--micro-batch-size", "4", "--global-batch-size", "4"),
    ),
    _training(
        "wide_fast",
        "wide_pair on the fused paths that training takes outside deterministic mode",
        "configs/vpmoe-6b.toml",
        *_WIDE,
        *FUSED,
        invariant=Invariant(reference="wide_pair", curves=_SAME_TRAINING),
    ),
    Case(
        name="kernels",
        description="every attention backend: its window by probing, its values against fp32",
        lanes=("h200",),
        target="vpmoe.cases.kernels:run",
        settings={
            "heads": 8,
            "groups": 2,
            "channels": 128,
            "window": 128,
            "probed": 136,
            "length": 1000,
            "environment": DETERMINISTIC,
        },
        preload=("torch", "triton", "vpmoe.model.attention.backends"),
        needs=Needs(gpus=1, modules=("torch", "triton", "vpmoe")),
        deterministic=True,
    ),
    _training(
        "dev_one",
        "vpMoE-dev on one of two GPUs, in two micro-batches: what two are held to",
        "configs/vpmoe-dev.toml",
        *_SHORT,
        lane="h200-x2",
        environment=_ONE_QUEUE,
        more=_NOT_COMPILED,
    ),
    _on_two(
        "dev_tp_sp",
        "tensor and sequence parallel",
        *_TP_SP,
        same=_SPLIT,
    ),
    _on_two("dev_ep", "expert parallel", *_EP),
    _on_two("dev_dp", "data parallel"),
    _training(
        "dev_one_of_four",
        "vpMoE-dev on one of four GPUs, in four micro-batches: what four are held to",
        "configs/vpmoe-dev.toml",
        *_SINGLE,
        lane="h200-x4",
        environment=_ONE_QUEUE,
        more={**_NOT_COMPILED, "canonical": True},
    ),
    _on_four("dev_tp_ep", "tensor, sequence and expert parallel", *_TP_SP, *_EP, same=_SPLIT),
    _on_four("dev_tp_pp", "tensor, sequence and pipeline parallel", *_TP_SP, *_PP, same=_SPLIT),
    _on_four("dev_ep_dp", "expert and data parallel", *_EP),
    _on_four("dev_pp_dp", "pipeline and data parallel", *_PP),
)
