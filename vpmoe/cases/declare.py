"""How vpMoE's cases on the CPU are declared: trainings of the tiny preset, and their layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from validation.cases.base import Case, Invariant, Needs
from vpmoe.cases.targets import DECODE, LEADING, MODULES, TRAINING, WARM

# Another layout sums in another order; nothing else may differ over its few steps. In multiples of
# fp32's epsilon: a mean of some hundred rounded numbers, a norm of sums over 201,088 logits.
# Megatron adds up the router's losses over the micro-batches of a rank, so these depend on the
# number of replicas.
EPSILON = 2.0**-23
SAME_TRAINING = {
    "lm_loss": 64 * EPSILON,
    "grad_norm": 512 * EPSILON,
    "learning_rate": 0.0,
}
ONE_REPLICA = {**SAME_TRAINING, "aux_loss/*": 64 * EPSILON}
# Where every rank has all layers, and where it has whole tensors.
BIASES = {"expert_bias/*": 0.0}
WHOLE = {**BIASES, "parameter_grad_norm/*": 256 * EPSILON}
# Rates follow from the step alone; what clipping scales by, from the norm of all gradients.
BY_KIND = {
    "learning_rate/*": 0.0,
    "decay/*": 0.0,
    "clip_coefficient/*": 512 * EPSILON,
}


def tiny(
    name: str,
    description: str,
    *flags: str,
    settings: Mapping[str, Any] | None = None,
    traced_steps: Sequence[int] = (),
    processes: int = 1,
    invariant: Invariant | None = None,
    paths: Sequence[str] = (),
    throughput: str | None = None,
) -> Case:
    """A training of the tiny preset, on the shipped conversations unless the settings say else."""
    base = {
        "preset": "configs/vpmoe-tiny.toml",
        "conversations": "data/sample/conversations.jsonl",
        "flags": list(flags),
        "by_kind": True,
    }
    return Case(
        name=name,
        description=description,
        lanes=("cpu",),
        target=TRAINING,
        settings={**base, **(settings or {})},
        traced_steps=traced_steps,
        processes=processes,
        preload=WARM,
        needs=Needs(modules=MODULES, paths=paths),
        invariant=invariant,
        decode=DECODE,
        leading=LEADING,
        throughput=throughput,
        arithmetic="wide",
    )


def layout(
    name: str,
    description: str,
    *flags: str,
    same: Mapping[str, float],
    reference: str = "tiny_moe",
) -> Case:
    """A training of the tiny preset on two processes, held to a case of one process.

    Args:
        name: of the layout, after `layout_`.
        description: of how the processes share the training.
        flags: of `vpmoe pretrain`.
        same: curves that must agree with the reference's, each with its relative bound.
        reference: case of one process.
    """
    return tiny(
        f"layout_{name}",
        f"the tiny vpMoE on two processes, {description}: the training of one process",
        "--train-iters",
        "3",
        *flags,
        processes=2,
        invariant=Invariant(reference=reference, curves={**same, **BY_KIND}),
    )
