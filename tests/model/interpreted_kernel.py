"""Compares the Triton kernel, interpreted on the CPU, with eager attention; exits 1 if they differ.

Run with TRITON_INTERPRET=1 before anything imports Triton.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import triton.runtime.interpreter as interpreter

from vpmoe.model.attention.eager import eager_attention
from vpmoe.model.attention.pattern import AttentionPattern
from vpmoe.model.attention.triton_kernel import triton_attention

_patch = interpreter._patch_lang_tensor


def _patch_for_numpy(tensor: Any, scope: Any) -> None:
    """Triton 3.6's interpreter converts a 1-element array to a scalar, which NumPy 2.5 refuses."""
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = _patch_for_numpy


def results(attend: Any, tensors: list[torch.Tensor], *rest: Any) -> list[torch.Tensor]:
    """Output and gradients of a backend."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = attend(*leaves, *rest)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape))
    return [out.detach(), *(leaf.grad for leaf in leaves)]  # type: ignore[misc]


def main() -> None:
    """Every combination of window, bias and documents at a length that no block divides."""
    torch.manual_seed(0)
    length = 37
    windows = (None, 1, 2, 7, length - 1, length, length + 1)
    biases = (None, (0.5, 0.25, 0.125, 0.0625))
    for window, slopes, resets in itertools.product(windows, biases, (False, True)):
        if slopes is not None and window not in (None, 7):
            continue
        tensors = [torch.randn(length, 2, heads, 16) for heads in (4, 2, 2)]
        tensors.append(torch.randn(4))
        ids = (torch.arange(length) // 11).int().expand(2, length) if resets else None
        pattern = AttentionPattern(0.25, window, slopes, True)
        expected = results(eager_attention, tensors, ids, pattern)
        actual = results(triton_attention, tensors, ids, pattern)
        for name, a, e in zip(("out", "dq", "dk", "dv", "db"), actual, expected, strict=True):
            error = float((a - e).norm() / e.norm().clamp_min(1e-30))
            # dq and dk of a window of one key are zero but for rounding.
            if not error < 1e-5 and not (window == 1 and name in ("dq", "dk")):
                raise SystemExit(f"{pattern} documents={resets}: {name} is off by {error:.1e}")


if __name__ == "__main__":
    main()
