"""What is recorded of each kind of parameter at a step: its learning rate, decay and clipping."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases.groups import parameter_group
from vpmoe.cases.statics import norm_of, sampled
from vpmoe.cases.updates import stepped


def kind_of_parameter(name: str) -> str:
    """The kind that a parameter's rates are recorded under: its group, biases apart."""
    group = parameter_group(name)
    return f"{group}_bias" if name.endswith(".bias") else group


def gradient_norms(model: Sequence[torch.nn.Module], optimizer: Any) -> dict[str, float]:
    """Norm of the gradients that the optimizer would step on now, by kind of parameter."""
    squares: defaultdict[str, float] = defaultdict(float)
    for name, parameter, _, _ in stepped(model, optimizer):
        if parameter.grad is not None:
            squares[kind_of_parameter(name)] += norm_of(sampled(parameter.grad)) ** 2
    return {kind: math.sqrt(total) for kind, total in squares.items()}


def record_rates(
    recorder: Recorder,
    step: int,
    model: Sequence[torch.nn.Module],
    optimizer: Any,
    unclipped: Mapping[str, float],
) -> None:
    """Records what a step is taken with, by kind of parameter.

    The curves are `learning_rate/<kind>`, `decay/<kind>`, and `clip_coefficient/<kind>`,
    which is by how much clipping has scaled the gradients. Where parameters of one kind have
    several rates it is their mean.

    Args:
        recorder: of this process.
        step: of the training.
        model: Megatron's model chunks of this rank.
        optimizer: Megatron's, about to step.
        unclipped: norms from before the clipping, as `gradient_norms` gives them.
    """
    rates: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for name, _, _, group in stepped(model, optimizer):
        rates[kind_of_parameter(name)].append(group)
    for kind, groups in sorted(rates.items()):
        for metric, field in (("learning_rate", "lr"), ("decay", "weight_decay")):
            values = {float(group[field]) for group in groups}
            value = values.pop() if len(values) == 1 else _mean(groups, field)
            recorder.curve(step, f"{metric}/{kind}", value, "optimizer")
    for kind, norm in sorted(gradient_norms(model, optimizer).items()):
        before = unclipped.get(kind)
        if before:
            recorder.curve(step, f"clip_coefficient/{kind}", _rounded(norm / before), "optimizer")


def _mean(groups: Sequence[Mapping[str, Any]], field: str) -> float:
    return statistics.fmean(float(group[field]) for group in groups)


def _rounded(value: float) -> float:
    """To fp32, in which the gradients are scaled."""
    return float(torch.tensor(value, dtype=torch.float32))
