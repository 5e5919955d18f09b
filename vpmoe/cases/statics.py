"""What is recorded of a built model before it trains: weights, schedules, tables, routing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases.probe import allowed_intervals

# Tokens that windows are probed with: a probe's memory grows with the third power.
_PROBED = 192


def record_statics(
    recorder: Recorder, model: Sequence[torch.nn.Module], optimizer: Any, length: int
) -> None:
    """Records everything that is decided before the first step.

    Args:
        recorder: of this process.
        model: Megatron's model chunks of this rank.
        optimizer: Megatron's, over their parameters.
        length: sequence length, of the tables by position.
    """
    for name, parameter in named_parameters(model):
        module, _, tensor = name.rpartition(".")
        recorder.tensor(
            step=0, micro_batch=0, phase="init", module=module, tensor=tensor, value=parameter
        )
    record_routing(recorder, model, optimizer)
    for chunk in model:
        body = unwrap(chunk)
        record_schedule(recorder, body)
        for name, module in body.named_modules():
            if name.endswith("self_attention"):
                _record_window(recorder, name, module, min(length, _PROBED))
            elif type(module).__name__ == "GrapeM":
                _record_rotations(recorder, name, module, length)


def named_parameters(
    model: Sequence[torch.nn.Module],
) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Every parameter of the model chunks, chunks told apart where there are several."""
    for index, chunk in enumerate(model):
        prefix = f"chunk{index}." if len(model) > 1 else ""
        for name, parameter in unwrap(chunk).named_parameters():
            yield prefix + name, parameter


def sampled(tensor: torch.Tensor) -> torch.Tensor:
    """Evenly spaced rows of a large matrix, about a million elements; smaller tensors whole.

    For what is measured at every step: reading embeddings whole would cost more than a step may.
    """
    stride = tensor.numel() >> 20
    return tensor[::stride] if stride > 1 and tensor.ndim > 1 else tensor


def norm_of(tensor: torch.Tensor) -> float:
    """Euclidean norm, added up in fp64 and rounded to fp32 once.

    torch adds up 25 million squares in fp32 with an error of up to 3e-3, which the number of
    threads decides.
    """
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64).float())


def gradient_of(parameter: torch.Tensor) -> torch.Tensor | None:
    """A parameter's gradient: in Megatron's buffer, where it has one there; None without any."""
    gradient: torch.Tensor | None = getattr(parameter, "main_grad", None)
    return parameter.grad if gradient is None else gradient


def unwrap(chunk: torch.nn.Module) -> torch.nn.Module:
    """The model inside Megatron's DDP and precision wrappers."""
    while isinstance(inner := getattr(chunk, "module", None), torch.nn.Module):
        chunk = inner
    return chunk


def parts(optimizer: Any) -> list[Any]:
    """The optimizers of Megatron's chain."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def record_routing(recorder: Recorder, model: Sequence[torch.nn.Module], optimizer: Any) -> None:
    """Which optimizer steps a parameter, with what learning rate and decay: discrete."""
    owners: dict[int, tuple[str, Mapping[str, Any]]] = {}
    for part in parts(optimizer):
        inner = getattr(part, "optimizer", None)
        for group in getattr(inner, "param_groups", ()):
            for parameter in group["params"]:
                owners[id(parameter)] = (type(inner).__name__, group)
        masters = zip(
            getattr(part, "float16_groups", ()),
            getattr(part, "fp32_from_float16_groups", ()),
            strict=True,
        )
        for halves, mains in masters:
            for half, main in zip(halves, mains, strict=True):
                if id(main) in owners:
                    owners[id(half)] = owners[id(main)]
    for name, parameter in named_parameters(model):
        kind, group = owners.get(id(parameter), ("none", {}))
        recorder.discrete(
            name,
            {
                "optimizer": kind,
                "shape": list(parameter.shape),
                "dtype": str(parameter.dtype),
                "max_lr": group.get("max_lr"),
                "min_lr": group.get("min_lr"),
                "weight_decay_multiplier": group.get("wd_mult"),
                **_reductions(parameter),
            },
            tensor="optimizer",
        )


def _reductions(parameter: torch.Tensor) -> dict[str, list[str]]:
    """Megatron's marks that decide which ranks a gradient is summed and counted over, if any."""
    marks = ["sequence_parallel", "pipeline_parallel", "shared"]
    found = [mark for mark in marks if getattr(parameter, mark, False)]
    if not getattr(parameter, "allreduce", True):
        found.append("expert_parallel")
    return {"reductions": found} if found else {}


def record_schedule(recorder: Recorder, model: torch.nn.Module, prefix: str = "") -> None:
    """Kind of every layer's attention and feed-forward, with window, scale and ALiBi slopes.

    Args:
        recorder: of this process.
        model: a built `VpmoeModel`, on the meta device or not.
        prefix: put before the names of modules.
    """
    for name, module in model.named_modules():
        if name.endswith("self_attention"):
            pattern = module.core_attention.pattern
            value = {
                "tensor_product": hasattr(module.linear_qkv, "b_q"),
                "window": pattern.window,
                "rotates": module.config.rotates(module.layer_number),
                "scale": pattern.scale,
                "softmax_offset": pattern.has_offset,
            }
            recorder.discrete(prefix + name, value, tensor="schedule")
            slopes = None if pattern.slopes is None else list(pattern.slopes)
            recorder.discrete(prefix + name, slopes, tensor="alibi_slopes")
        elif name.endswith("mlp"):
            kind = "experts" if hasattr(module, "router") else "dense"
            recorder.discrete(prefix + name, kind, tensor="schedule")


def _record_window(recorder: Recorder, name: str, module: Any, length: int) -> None:
    """The keys that a layer's kernel uses, read off it by probing."""
    recorder.table(
        f"window/{name}",
        allowed_intervals(
            module.core_attention,
            length,
            module.num_attention_heads_per_partition,
            module.num_query_groups_per_partition,
            module.hidden_size_per_attention_head,
        ),
    )


def _record_rotations(recorder: Recorder, name: str, module: Any, length: int) -> None:
    """GRAPE-M's cos and sin at every position, [2, length, 1, groups, planes]."""
    device = module.phi.device
    with torch.no_grad():
        rotations = module(torch.arange(length, device=device)[None])
    recorder.tensor(
        step=0, micro_batch=0, phase="init", module=name, tensor="rotations", value=rotations
    )
