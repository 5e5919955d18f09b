"""Golden cases and faults of `plain_loop`: all that another team writes to have its loop gated.

Declaring a case imports no training code, so that `golden list` answers at once.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from validation.cases import Benign, Case, Fault
from validation.running.recorder import Recorder, attach_module

if TYPE_CHECKING:
    import torch


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Trains and records; the target of every case here."""
    import plain_loop

    model = plain_loop.build_model(settings.get("seed", 1))
    for name, parameter in model.named_parameters():
        module, _, tensor = name.rpartition(".")
        recorder.tensor(
            step=0, micro_batch=0, phase="init", module=module, tensor=tensor, value=parameter
        )
    if "perturb_seed" in settings:  # asked for by `golden calibrate`
        _move_one_ulp(model, settings["perturb_seed"])
    recorder.table("window", [[i, *_allowed(i)] for i in range(plain_loop.LENGTH)])
    place = (0, 0)

    def on_batch(step: int, micro_batch: int, tokens: "torch.Tensor") -> None:
        nonlocal place
        place = (step, micro_batch)
        recorder.discrete(
            "tokens", tokens.tolist(), step=step, micro_batch=micro_batch, phase="data"
        )

    def on_step(step: int, loss: float, norm: float, rate: float) -> None:
        recorder.curve(step, "lm_loss", loss)
        recorder.curve(step, "grad_norm", norm, phase="reduction")
        recorder.curve(step, "learning_rate", rate, phase="optimizer")

    attach_module(recorder, model, lambda: place)
    steps = min(settings.get("stop_after", settings["steps"]), settings["steps"])
    plain_loop.train(model, steps, settings["micro_batches"], on_batch, on_step)


def _allowed(query: int) -> list[int]:
    import plain_loop

    keys = plain_loop.window_mask()[query].nonzero().flatten().tolist()
    return [keys[0], keys[-1] + 1]


def _move_one_ulp(model: "torch.nn.Module", seed: int) -> None:
    import torch

    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            up = torch.rand(parameter.shape, generator=source) < 0.5
            target = torch.where(up, torch.inf, -torch.inf)
            parameter.copy_(torch.nextafter(parameter, target))


CASES = [
    Case(
        name="plain_loss",
        description="the loss of twelve steps",
        lanes=["cpu"],
        target="plain_cases:run",
        settings={"steps": 12, "micro_batches": 2},
        traced_steps=[1, 2],
        leading=["lm_loss", "grad_norm", "learning_rate"],
    ),
    Case(
        name="plain_seed",
        description="four steps of another seed",
        lanes=["cpu"],
        target="plain_cases:run",
        settings={"steps": 4, "micro_batches": 1, "seed": 7},
    ),
]


@contextlib.contextmanager
def wide_window() -> Iterator[None]:
    """The window is one position too wide."""
    import plain_loop

    with patch.object(plain_loop, "WINDOW", plain_loop.WINDOW + 1):
        yield


@contextlib.contextmanager
def same_window() -> Iterator[None]:
    """The window is put in its own place."""
    import plain_loop

    with patch.object(plain_loop, "WINDOW", plain_loop.WINDOW):
        yield


@contextlib.contextmanager
def halved_gradient() -> Iterator[None]:
    """Gradients are halved before clipping."""
    import torch

    clip = torch.nn.utils.clip_grad_norm_

    def halved(parameters: Any, limit: float) -> "torch.Tensor":
        given = list(parameters)
        for parameter in given:
            parameter.grad.mul_(0.5)
        return clip(given, limit)

    with patch.object(torch.nn.utils, "clip_grad_norm_", halved):
        yield


@contextlib.contextmanager
def einsum_attention() -> Iterator[None]:
    """The same attention, written with einsum and another order of operations."""
    import plain_loop
    import torch

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).split(plain_loop.WIDTH, dim=-1)
        scores = torch.einsum("bqd,bkd->bqk", q * self.scale, k)
        scores = scores.masked_fill(~plain_loop.window_mask(), -1e9)
        return x + self.out(torch.einsum("bqk,bkd->bqd", scores.softmax(dim=-1), v))

    with patch.object(plain_loop.Attention, "forward", forward):
        yield


BENIGN = [
    Benign(
        id="einsum_attention",
        description="einsum in place of matmul: only rounding moves",
        plant="plain_cases:einsum_attention",
        case="plain_loss",
    ),
]

FAULTS = [
    Fault(
        id="wide_window",
        category="window",
        component="window",
        imitates="an off-by-one of the sliding window",
        plant="plain_cases:wide_window",
        no_op="plain_cases:same_window",
        case="plain_loss",
        canary_steps=2,
    ),
    Fault(
        id="halved_gradient",
        category="gradient",
        component="grad_norm",
        imitates="a mean over ranks taken twice",
        plant="plain_cases:halved_gradient",
        case="plain_seed",
        canary_steps=2,
    ),
]
