"""The target of the case `kernels`: every attention backend of a GPU, probed, compared with fp32.

A backend's window is read off it by gradients, and its outputs and gradients must be those of the
eager fp32 reference within what bf16 leaves.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases.probe import allowed_intervals

# Relative norms that bf16 inputs and outputs leave, of the output and of each gradient.
_OUTPUT_BOUND, _GRADIENT_BOUND = 4e-3, 1e-2
_SEED = 11


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Records each backend's tables, tensors and distance from the reference.

    Args:
        recorder: of this process.
        settings: `heads`, `groups`, `channels`, `window`, `probed` (tokens of a table), `length`
            (tokens of the tensors), `environment` (variables that the user has not set),
            `perturb_seed` (moves the inputs by one unit in the last place of fp32, before they are
            rounded to bf16).
    """
    for name, value in settings.get("environment", {}).items():
        os.environ.setdefault(name, value)
    from vpmoe.model.attention.backends import BACKENDS
    from vpmoe.model.attention.pattern import AttentionPattern
    from vpmoe.model.grape import alibi_slopes

    heads, channels = settings["heads"], settings["channels"]
    scale = channels**-0.5
    patterns = {
        "local": AttentionPattern(scale, settings["window"], None, True),
        "global": AttentionPattern(scale, None, alibi_slopes(heads), True),
        "plain": AttentionPattern(scale),
    }
    for kind, pattern in patterns.items():
        for backend in BACKENDS:
            _record(recorder, settings, f"{backend.name}/{kind}", backend, pattern)


def _record(
    recorder: Recorder, settings: Mapping[str, Any], name: str, backend: Any, pattern: Any
) -> None:
    heads, groups, channels = (settings[n] for n in ("heads", "groups", "channels"))
    inputs = _inputs(settings["length"], heads, groups, channels, settings.get("perturb_seed"))
    reason = backend.unsupported_reason(pattern, inputs[0], None)
    recorder.discrete(name, reason, tensor="refusal")
    if reason is not None:
        return
    kernel = _Kernel(backend, pattern, heads)
    recorder.table(
        f"window/{name}",
        allowed_intervals(kernel, settings["probed"], heads, groups, channels),
    )
    found = _results(backend, pattern, inputs, torch.bfloat16)
    expected = _results(_reference(), pattern, inputs, torch.float32)
    for tensor, value in found.items():
        recorder.tensor(
            step=0, micro_batch=0, phase="init", module=name, tensor=tensor, value=value
        )
        error = (value.float() - expected[tensor]).norm() / expected[tensor].norm()
        bound = _OUTPUT_BOUND if tensor == "output" else _GRADIENT_BOUND
        recorder.invariant(
            name, "eager attention in fp32", float(error), bound, tensor=f"{tensor}.law"
        )


class _Kernel(torch.nn.Module):
    """A backend as the probe calls a layer's core attention."""

    def __init__(self, backend: Any, pattern: Any, heads: int) -> None:
        super().__init__()
        self._backend, self._pattern = backend, pattern
        self.offset = torch.nn.Parameter(torch.zeros(heads, dtype=torch.bfloat16, device="cuda"))

    def forward(self, query: Any, key: Any, value: Any, document_ids: Any) -> torch.Tensor:
        offset = self.offset if self._pattern.has_offset else None
        found: torch.Tensor = self._backend.attend(
            query.contiguous(), key, value, offset, document_ids, self._pattern
        )
        return found


def _reference() -> Any:
    from vpmoe.model.attention.backends import EagerBackend

    return EagerBackend()


def _inputs(
    length: int, heads: int, groups: int, channels: int, perturb_seed: int | None
) -> list[torch.Tensor]:
    """query, key, value, offset and the gradient of the output, in bf16 on the GPU."""
    generator = torch.Generator().manual_seed(_SEED)
    shapes = [(length, 2, n, channels) for n in (heads, groups, groups)]
    shapes += [(heads,), (length, 2, heads * channels)]  # type: ignore[list-item]
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    if perturb_seed is not None:
        moves = torch.Generator().manual_seed(perturb_seed)
        for values in inputs:
            up = torch.rand(values.shape, generator=moves) < 0.5
            torch.nextafter(values, torch.where(up, torch.inf, -torch.inf), out=values)
    return [values.bfloat16().cuda() for values in inputs]


def _results(
    backend: Any, pattern: Any, inputs: list[torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    *given, gradient = (tensor.to(dtype) for tensor in inputs)
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    offset = leaves[3] if pattern.has_offset else None
    output = backend.attend(*leaves[:3], offset, None, pattern)
    output.backward(gradient.view_as(output))
    found = {"output": output.detach()}
    for name, leaf in zip(("query", "key", "value", "offset"), leaves, strict=True):
        if leaf.grad is not None:
            found[f"{name}.grad"] = leaf.grad
    return found
