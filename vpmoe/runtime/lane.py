"""Lanes: one training entry, two kinds of machine.

A `Lane` says which Megatron flags a machine needs by default and which context Megatron runs in.
The GPU lane only sets flags: Megatron runs as it is. The CPU lane maps Megatron onto gloo.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from vpmoe.runtime import cpu_lane


@dataclass(frozen=True)
class Lane:
    """One kind of machine.

    Attributes:
        name: `cpu` or `gpu`.
        default_flags: Megatron flags put before the user's own, which therefore win.
        activate: context manager inside which Megatron is imported and runs.
    """

    name: str
    default_flags: tuple[str, ...]
    activate: Callable[[], AbstractContextManager[None]]


# vpMoE's layers are Megatron's local ones with its own parts; Megatron's fused alternatives need
# Transformer Engine's or apex's layers.
_GPU_FLAGS = (
    "--transformer-impl",
    "local",
    "--moe-token-dispatcher-type",
    "alltoall",
    "--cuda-graph-impl",
    "none",
    "--no-gradient-accumulation-fusion",
    "--no-persist-layer-norm",
    "--no-masked-softmax-fusion",
    "--no-rope-fusion",
)

CPU = Lane(name="cpu", default_flags=cpu_lane.DEFAULT_FLAGS, activate=cpu_lane.activate)
GPU = Lane(name="gpu", default_flags=_GPU_FLAGS, activate=contextlib.nullcontext)


def detect_lane() -> Lane:
    """Returns the lane of this process: GPU where torch sees a CUDA device, CPU otherwise.

    `CUDA_VISIBLE_DEVICES=""` therefore selects the CPU lane on a machine with GPUs.
    """
    return GPU if torch.cuda.is_available() else CPU


def in_words(lane: Lane) -> str:
    """The lane and why it was chosen, for a person; on the GPU lane CUDA is initialised by it."""
    if lane is GPU:
        major, minor = torch.cuda.get_device_capability()
        card = torch.cuda.get_device_name()
        return f"lane {lane.name} ({card}, compute capability {major}.{minor})"
    if torch.version.cuda is None:
        return f"lane {lane.name} (this torch is built without CUDA)"
    return f"lane {lane.name} (no CUDA device is visible)"
