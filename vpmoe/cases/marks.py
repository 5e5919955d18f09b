"""Megatron's marks on a parameter: what it reads to reduce, count, shard and group it."""

from __future__ import annotations

from typing import Any

import torch

from validation.running.recorder import Recorder

# Each changes what some rank reduces, counts in a norm, saves, or steps with which rates; with what
# Megatron takes a parameter for that lacks it.
_MARKS = {
    "tensor_model_parallel": False,
    "partition_dim": -1,
    "partition_stride": 1,
    "sequence_parallel": False,
    "allreduce": True,
    "average_gradients_across_tp_domain": False,
    "shared": False,
    "shared_embedding": False,
    "pipeline_parallel": False,
    "is_embedding_parameter": False,
    "is_embedding_or_output_parameter": False,
    "requires_grad": True,
}


def marks_of(parameter: torch.Tensor) -> dict[str, Any]:
    """The marks of a parameter that say something, by name."""
    found = {mark: getattr(parameter, mark, usual) for mark, usual in _MARKS.items()}
    return {mark: value for mark, value in found.items() if value != _MARKS[mark]}


def record_marks(recorder: Recorder, name: str, parameter: torch.Tensor, **more: Any) -> None:
    """Records a parameter's marks and type under its name, as something discrete.

    Args:
        recorder: of this process.
        name: qualified name in the model.
        parameter: of a built model, on the meta device or not.
        **more: what else is recorded with them, as JSON.
    """
    value = {"dtype": str(parameter.dtype), **marks_of(parameter), **more}
    recorder.discrete(name, value, tensor="marks")
