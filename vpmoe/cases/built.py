"""What is recorded of a model that is built and not trained: its parameter groups and marks."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases.marks import record_marks
from vpmoe.cases.statics import parts

# What torch's AdamW chooses among its own implementations by.
_IMPLEMENTATION = ("foreach", "capturable", "differentiable", "fused")


def record_built(recorder: Recorder, flags: Sequence[str], prefix: str, ranks: int) -> None:
    """Records the optimizer's parameter groups, and each parameter's shape, group and marks.

    Args:
        recorder: of this process.
        flags: of `vpmoe pretrain`, parallel sizes included.
        prefix: put before the names.
        ranks: of the layout; the last one's part is built, on the meta device.
    """
    from vpmoe.model.meta import meta_model

    with meta_model([*flags, "--expert-kernel", "grouped"], ranks - 1, ranks) as (args, model):
        group_of = _record_groups(recorder, args, model, f"{prefix}/groups")
        for name, parameter in model.named_parameters():
            shape, group = list(parameter.shape), group_of.get(parameter, "none")
            record_marks(recorder, f"{prefix}/{name}", parameter, shape=shape, group=group)


def _record_groups(
    recorder: Recorder, args: argparse.Namespace, model: Any, name: str
) -> dict[torch.Tensor, str]:
    """Records each group of the optimizer; returns the label of each parameter's."""
    from vpmoe.optimizer.megatron import build_optimizer

    optimizer = build_optimizer(_optimizer_config(args), [model], args)
    group_of: dict[torch.Tensor, str] = {}
    every = [
        (part.optimizer, group)
        for part in parts(optimizer)
        for group in part.optimizer.param_groups
    ]
    for number, (inner, group) in enumerate(every):
        label = f"group{number}"
        value = {"optimizer": type(inner).__name__, **_options(group)}
        recorder.discrete(name, value, tensor=label)
        group_of.update(dict.fromkeys(group["params"], label))
    return group_of


def _optimizer_config(args: argparse.Namespace) -> Any:
    """Megatron's configuration of the optimizer, for a model without narrow copies of weights."""
    from megatron.core.optimizer import OptimizerConfig

    fields = [field.name for field in dataclasses.fields(OptimizerConfig)]
    values = {name: getattr(args, name) for name in fields if hasattr(args, name)}
    return OptimizerConfig(**{**values, "bf16": False, "params_dtype": torch.float32})


def _options(group: dict[str, Any]) -> dict[str, Any]:
    left_out = ("params", *_IMPLEMENTATION)
    return {name: _plain(value) for name, value in group.items() if name not in left_out}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
