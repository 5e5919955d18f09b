"""Runs the CUDA kernel on the CPU, in Triton's interpreter: python interpreted_kernel.py

Prints one JSON object of what `test_triton_kernel.py` asserts on. A process of its own, because
the interpreter is chosen when a kernel is defined.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
import triton.language as tl
from reference_normuon import ReferenceNorMuon
from triton.runtime import interpreter

import vpmoe.optimizer.normuon as normuon
from vpmoe.optimizer import NorMuon

SHAPES = ((128, 192), (192, 128), (20, 70), (70, 20), (1, 40), (40, 1))
STEPS = 3
RATE, DECAY = 0.125, 0.5


def repair_interpreter() -> None:
    """Makes up for what Triton 3.6's interpreter gets wrong.

    It multiplies bf16 matrices as the integers that it stores them in, truncates where a GPU rounds
    to nearest, and turns arrays of one element into integers as numpy 2.5 no longer does.
    """
    convert, patch_tensor = interpreter._convert_float, interpreter._patch_lang_tensor

    def converted(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) == (tl.float32, tl.bfloat16):
            half = torch.from_numpy(np.ascontiguousarray(data)).bfloat16()
            return half.view(torch.int16).numpy().view(np.uint16)
        if (source, target) == (tl.bfloat16, tl.float32):
            return np.ascontiguousarray(data).astype(np.uint32) << 16
        return convert(data, source, target, rounding)

    def floats(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle.data
        return converted(handle.data, tl.bfloat16, tl.float32, None).view(np.float32)

    def dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        product = np.matmul(floats(a), floats(b), dtype=d.data.dtype)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    def patched_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._convert_float = converted
    interpreter.InterpreterBuilder.create_dot = dot
    interpreter._patch_lang_tensor = patched_tensor


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def against_the_formulas(shape: tuple[int, int]) -> dict[str, float]:
    """Largest relative errors over a few steps of three matrices in separate parameters."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for _ in range(3)]
    optimizer = NorMuon(weights, lr=RATE, weight_decay=DECAY)
    references = [ReferenceNorMuon(shape) for _ in weights]
    worst = {"update": 0.0, "momentum": 0.0, "second": 0.0}
    for _ in range(STEPS):
        for weight in weights:
            weight.grad = torch.randn(shape, generator=generator)
        before = [weight.detach().double() for weight in weights]
        optimizer.step()
        for weight, old, reference in zip(weights, before, references, strict=True):
            expected = reference.update(weight.grad)
            step = (old * (1 - RATE * DECAY) - weight.detach()) / RATE
            state = optimizer.state[weight]
            errors = {
                "update": relative(step, expected),
                "momentum": relative(state["momentum_buffer"], reference.m),
                "second": relative(state["second_momentum"], reference.v),
            }
            worst = {name: max(worst[name], errors[name]) for name in worst}
    return worst


def step_once(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """What a first step subtracts, at a rate of 1."""
    weights = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    NorMuon(weights, lr=1.0).step()
    return [-weight.detach() for weight in weights]


def scales() -> dict[str, float]:
    """Relative difference between the update of a scaled gradient and of a plain one."""
    gradient = torch.randn(24, 40, generator=torch.Generator().manual_seed(1))
    plain = step_once([gradient])[0].double()
    factors = ("1e30", "1e15", "1e-15", "1e-30")
    found = step_once([gradient * float(factor) for factor in factors])
    return {f: relative(update, plain) for f, update in zip(factors, found, strict=True)}


def stacks_and_missing_gradients() -> dict[str, bool]:
    """Whether stacking, a parameter without a gradient and moved gradients change nothing."""
    generator = torch.Generator().manual_seed(2)
    stacked = torch.nn.Parameter(torch.zeros(5, 12, 20))
    missing = torch.nn.Parameter(torch.zeros(12, 20))
    last = torch.nn.Parameter(torch.zeros(12, 20))
    alone = [torch.nn.Parameter(torch.zeros(12, 20)) for _ in range(6)]
    together, separate = NorMuon([stacked, missing, last], lr=1.0), NorMuon(alone, lr=1.0)
    for _ in range(STEPS):
        gradients = torch.randn(6, 12, 20, generator=generator)
        stacked.grad, last.grad = gradients[:5].clone(), gradients[5].clone()
        for weight, gradient in zip(alone, gradients, strict=True):
            weight.grad = gradient
        together.step()
        separate.step()
    found = torch.cat((stacked.data, last.data[None]))
    return {
        "equal": torch.equal(found, torch.stack([weight.data for weight in alone])),
        "missing_untouched": not bool(missing.any()),
    }


def main() -> None:
    """Prints the results."""
    torch.set_num_threads(1)
    repair_interpreter()
    normuon._fits_kernel = lambda param, layout: True  # type: ignore[assignment]
    noise = torch.randn(8, 24, generator=torch.Generator().manual_seed(3))
    bad = step_once([noise, torch.full_like(noise, torch.nan), torch.full_like(noise, torch.inf)])
    largest = [
        float(torch.linalg.svdvals(update).max())
        for update in step_once([torch.eye(16), torch.ones(16, 16), torch.eye(16) * 3.0])
    ]
    results = {
        "formulas": {f"{m}x{n}": against_the_formulas((m, n)) for m, n in SHAPES},
        "scales": scales(),
        "zero": float(step_once([torch.zeros(6, 9)])[0].abs().max()),
        "bad": [bool(update.isnan().all()) for update in bad],
        "good_beside_bad": bool(bad[0].isfinite().all()),
        "largest_singular_values": largest,
        **stacks_and_missing_gradients(),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
