"""The optimizer's update, derived again in fp64 from the state and gradient that it started from.

Nothing of `vpmoe.optimizer` is used: NorMuon (Li et al., 2025) is written down here from its
formulas, and AdamW from Loshchilov and Hutter (2019).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Polar Express with a cushion of 0.02 and l0 = 1e-3 (Amsel et al., 2025), safety factor 0.02.
_SAFETY = 2e-2
_POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
_EPS = 1e-10

# Relative error of an update beyond which it is not the formula's. NorMuon's slope of 989 at zero
# amplifies rounding in rank-deficient gradients; bf16 products on a GPU leave a few per cent.
BOUNDS = {"NorMuon": 2e-3, "AdamW": 1e-4}
_GPU_BOUND = 6e-2

# Adam works element by element: of larger parameters, an evenly spaced part is replayed.
_ELEMENTS = 1 << 18

ULP_EDGES = (0, 1, 4, 16)


@dataclass(frozen=True)
class Polynomials:
    """The polynomials of Polar Express that a run's flags ask for.

    Attributes:
        coefficients: (a, b, c) of each.
        safety: sf, by which more than the norm the update is divided before.
    """

    coefficients: Sequence[Sequence[float]] = _POLAR_EXPRESS
    safety: float = _SAFETY


def polynomials(flags: argparse.Namespace) -> Polynomials:
    """Derives the polynomials from `--polar-express-safety-factor` and `-coeffs-path`.

    Args:
        flags: Megatron's and vpMoE's arguments.

    Returns:
        The polynomials.

    Raises:
        ValueError: a safety factor whose polynomials are not written down here, and no file.
    """
    safety = flags.polar_express_safety_factor
    if flags.polar_express_coeffs_path is not None:
        read = json.loads(Path(flags.polar_express_coeffs_path).read_text(encoding="utf-8"))
        return Polynomials(read, safety)
    if safety != _SAFETY:
        raise ValueError(
            f"--polar-express-safety-factor {safety}: its polynomials are not written down in "
            f"{__name__}; give them with --polar-express-coeffs-path, or use {_SAFETY}"
        )
    return Polynomials()


@dataclass(frozen=True)
class Before:
    """A parameter as a step found it; tensors are copies, of a sample of AdamW's elements.

    Attributes:
        kind: `NorMuon` or `AdamW`.
        parameter: the fp32 (main) parameter itself.
        stride: distance of the sampled elements in the flattened parameter, 1 for all.
        weight: its values.
        gradient: after clipping.
        state: the optimizer's tensors.
        group: hyperparameters.
        polynomials: of NorMuon.
    """

    kind: str
    parameter: torch.Tensor
    stride: int
    weight: torch.Tensor
    gradient: torch.Tensor
    state: Mapping[str, torch.Tensor]
    group: Mapping[str, Any]
    polynomials: Polynomials


@dataclass(frozen=True)
class Replayed:
    """How a step compares with its replay.

    Attributes:
        error: norm of the difference of the updates, relative to the replayed update.
        bound: what it may be.
        ulps: distance of each new weight from the replayed one, in units of its last place.
    """

    error: float
    bound: float
    ulps: torch.Tensor


def before_step(
    parameter: torch.Tensor,
    optimizer: Any,
    group: Mapping[str, Any],
    wanted: Polynomials | None = None,
) -> Before | None:
    """Copies what a replay needs, or None for what is not replayed here.

    That is another optimizer's parameter, one without a gradient, and a tensor-parallel or fused
    one, whose matrices are not its own.

    Args:
        parameter: about to be stepped.
        optimizer: torch's.
        group: its hyperparameters.
        wanted: NorMuon's polynomials; those of the safety factor 0.02 when None.

    Returns:
        Copies, or None.
    """
    kind = "NorMuon" if type(optimizer).__name__ == "NorMuon" else "AdamW"
    if parameter.grad is None or (kind == "AdamW" and "betas" not in group):
        return None
    if kind == "NorMuon" and _layout(parameter, optimizer) != (None, None):
        return None
    stride = 1 if kind == "NorMuon" else max(1, parameter.numel() // _ELEMENTS)

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        whole = kind == "NorMuon" or tensor.numel() != parameter.numel()
        return (tensor if whole else tensor.flatten()[::stride]).detach().clone()

    state = {
        name: copied(value)
        for name, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }
    hyper = {name: value for name, value in group.items() if name != "params"}
    return Before(
        kind,
        parameter,
        stride,
        copied(parameter),
        copied(parameter.grad),
        state,
        hyper,
        wanted or Polynomials(),
    )


def replay(before: Before) -> Replayed:
    """Derives the step again and compares it with the one that was taken."""
    weight, gradient = before.weight.double(), before.gradient.double()
    derive = _normuon if before.kind == "NorMuon" else _adamw
    decay = 1.0 - before.group["lr"] * before.group.get("weight_decay", 0.0)
    expected = weight * decay - before.group["lr"] * derive(gradient, before)
    now = before.parameter.detach()
    if before.kind == "AdamW":
        now = now.flatten()[:: before.stride]
    moved, target = now.double() - weight, expected - weight
    size = float(target.norm())
    gap = float((moved - target).norm())
    error = gap / size if size > 0 else math.inf if gap > 0 else 0.0
    bound = BOUNDS[before.kind]
    if before.kind == "NorMuon" and now.is_cuda:
        bound = _GPU_BOUND
    # Storing the weight rounds it, by at most half a unit: no error of the update.
    spacing = _spacing(expected)
    rounding = float(spacing.norm()) / size if size > 0 else 0.0
    return Replayed(error, bound + rounding, (now.double() - expected).abs() / spacing)


def ulp_shares(replayed: Sequence[Replayed]) -> dict[str, float]:
    """Histogram over all elements: share of those at most so many units away."""
    ulps = torch.cat([entry.ulps.flatten() for entry in replayed])
    return {f"at_most_{edge}": float((ulps <= edge + 0.5).double().mean()) for edge in ULP_EDGES}


def _adamw(gradient: torch.Tensor, before: Before) -> torch.Tensor:
    beta1, beta2 = before.group["betas"]
    state = before.state
    zero = torch.zeros_like(gradient)
    first = beta1 * state.get("exp_avg", zero).double() + (1 - beta1) * gradient
    second = beta2 * state.get("exp_avg_sq", zero).double() + (1 - beta2) * gradient.square()
    taken = state.get("step", before.group.get("step", 0))
    step = float(taken) + 1.0
    first, second = first / (1 - beta1**step), second / (1 - beta2**step)
    return first / (second.sqrt() + before.group["eps"])


def _normuon(gradient: torch.Tensor, before: Before) -> torch.Tensor:
    mu, beta2 = before.group["momentum"], before.group["beta2"]
    zero = torch.zeros((), dtype=torch.float64, device=gradient.device)
    momentum = before.state.get("momentum_buffer", zero).double()
    momentum = mu * momentum + (1 - mu) * gradient
    polar = _polar((1 - mu) * gradient + mu * momentum, before.polynomials)
    mean = polar.square().mean(dim=-1, keepdim=True)
    second = beta2 * before.state.get("second_momentum", zero).double() + (1 - beta2) * mean
    scaled = polar / (second + _EPS).sqrt()
    sizes = [torch.linalg.matrix_norm(x)[..., None, None] for x in (polar, scaled)]
    scaled = torch.where(sizes[1] > 0, scaled * (sizes[0] / sizes[1]), 0.0)
    rows, columns = polar.shape[-2:]
    return scaled * math.sqrt(max(1.0, rows / columns))


def _polar(update: torch.Tensor, wanted: Polynomials) -> torch.Tensor:
    """Odd polynomials of the normalised update."""
    norm = torch.linalg.matrix_norm(update)[..., None, None]
    x = update / (norm * (1 + wanted.safety) + 1e-6)
    tall = x.shape[-2] > x.shape[-1]
    for a, b, c in wanted.coefficients:
        if tall:
            gram = x.mT @ x
            x = a * x + x @ (b * gram + c * gram @ gram)
        else:
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _layout(parameter: torch.Tensor, optimizer: Any) -> tuple[Any, Any]:
    for group, layouts in zip(optimizer.param_groups, optimizer._layouts, strict=True):
        for known, layout in zip(group["params"], layouts, strict=True):
            if known is parameter:
                return layout.tp_group, layout.block_rows
    return None, None


def _spacing(value: torch.Tensor) -> torch.Tensor:
    """The unit in the last place of fp32 at each value, in fp64."""
    magnitude = value.abs().float().clamp_min(torch.finfo(torch.float32).tiny)
    return (torch.nextafter(magnitude, torch.full_like(magnitude, torch.inf)) - magnitude).double()
