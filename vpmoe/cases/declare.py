"""How vpMoE's cases on the CPU are declared: trainings of the tiny preset, and their layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from validation.cases.base import Case, Invariant, Needs
from vpmoe.cases.targets import DECODE, LAYOUTS, LEADING, MODULES, TRAINING, WARM

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

# The parts of tensors that processes share among them, held to one process's. Between a weight and
# the loss, there and back, lie some 250 rounded operations: a gradient is off by 128 epsilons if
# all of them err by half a unit the same way, and by 8 where they err as they like. The second
# step's are no further off, since its weights differ by less than that.
_GRADIENT = 128 * EPSILON
# NorMuon's polynomials have a slope of 989 where a gradient has next to nothing, of 8 epsilons. A
# weight that began at zero is its update.
_UPDATE = 989 * 8 * EPSILON
# Gradients of GRAPE-M's frequencies and of softmax offsets are sums of up to some 800 terms
# (positions, heads, layers) of both signs: these may cancel to the root of their number, and what
# each is off by does not.
_CANCELLED = 28 * _GRADIENT
SHARDS = {
    "init:*.value*": 0.0,
    "reduction:grapem.phi.grad": _CANCELLED,
    "optimizer:grapem.phi.exp_avg*": 2 * _CANCELLED,
    "reduction:*.softmax_offset.grad*": _CANCELLED,
    "optimizer:*.softmax_offset.exp_avg*": 2 * _CANCELLED,
    "reduction:*.grad*": _GRADIENT,  # the norm of all of them is `training.grad_norm`
    "optimizer:*.update*": _UPDATE,
    "optimizer:*.exp_avg_sq*": 2 * _GRADIENT,
    "optimizer:*.exp_avg*": _GRADIENT,
    "optimizer:*.momentum_buffer*": _GRADIENT,
    "optimizer:*.second_momentum*": 2 * _UPDATE,
    "optimizer:*.value*": _UPDATE,
}
# Counts of tokens decide it.
BALANCE = {"reduction:*.expert_bias.value": 0.0}


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


def canonical(
    name: str,
    description: str,
    *flags: str,
    processes: int = 1,
    small: bool = False,
    saved_by: Sequence[str] | None = None,
    invariant: Invariant | None = None,
) -> Case:
    """Two steps of the tiny preset, whose tensors are recorded as every layout has them.

    Args:
        name: of the case.
        description: of what is trained.
        *flags: of `vpmoe pretrain`.
        processes: that share the training.
        small: trains on made-up samples over a small vocabulary, four of them a step.
        saved_by: flags of a small training that takes the first step; None where this one does.
        invariant: what it must be equal to.

    Returns:
        The case.
    """
    if not small:
        return tiny(
            name,
            description,
            *("--train-iters", "2"),
            *flags,
            settings={"canonical": True},
            traced_steps=(1, 2),
            processes=processes,
            invariant=invariant,
        )
    batches = ("--train-iters", "2", "--global-batch-size", "4")
    return Case(
        name=name,
        description=description,
        lanes=("cpu",),
        target=LAYOUTS,
        settings={
            "preset": "configs/vpmoe-tiny.toml",
            "flags": [*batches, *flags],
            **({"saved_by": [*batches, *saved_by]} if saved_by is not None else {}),
        },
        processes=processes,
        traced_steps=(1, 2),
        preload=WARM,
        needs=Needs(modules=MODULES),
        invariant=invariant,
        leading=LEADING,
        arithmetic="wide",
    )


def layout(
    name: str,
    description: str,
    *flags: str,
    same: Mapping[str, float],
    shards: Mapping[str, float] | None = None,
    reference: str | None = None,
    processes: int = 2,
) -> Case:
    """A training of the tiny preset on several processes, held to a case of one process.

    Args:
        name: of the layout, after `layout_`.
        description: of how the processes share the training.
        *flags: of `vpmoe pretrain`.
        same: curves that must agree with the reference's, each with its relative bound.
        shards: tensors that the processes share among them, likewise; None for all.
        reference: case of one process; None for the one that has the same samples.
        processes: two, or four over a small vocabulary.

    Returns:
        The case.
    """
    small = processes == 4
    return canonical(
        f"layout_{name}",
        f"the tiny vpMoE on {'four' if small else 'two'} processes, {description}: the training "
        "of one process",
        *flags,
        processes=processes,
        small=small,
        invariant=Invariant(
            reference=reference or ("one_process_small" if small else "one_process"),
            curves=same,
            shards={**SHARDS, **BALANCE} if shards is None else shards,
        ),
    )


def moved(
    name: str,
    description: str,
    *flags: str,
    saved_by: Sequence[str],
    processes: int = 2,
    straight: bool = True,
) -> Case:
    """A training that goes on from the checkpoint of another layout, held to the straight run.

    Args:
        name: of the case, after `moved_`.
        description: of the two layouts.
        *flags: of the layout that loads.
        saved_by: flags of the layout that saves, after a step.
        processes: of both.
        straight: whether the optimizer moves too, so that the training is the straight run's.

    Returns:
        The case.
    """
    # Of the second step: what was loaded is compared with what was saved, bit for bit.
    shards = {name: bound for name, bound in SHARDS.items() if not name.startswith("init:")}
    invariant = Invariant(
        reference="one_process_small", curves=SAME_TRAINING, shards={**shards, **BALANCE}
    )
    return canonical(
        f"moved_{name}",
        f"the tiny vpMoE, its checkpoint moved {description}"
        + (": all of it, and the straight run" if straight else ""),
        *flags,
        processes=processes,
        small=True,
        saved_by=saved_by,
        invariant=invariant if straight else None,
    )
