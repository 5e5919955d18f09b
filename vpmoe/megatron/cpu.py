"""What Megatron itself must be told on a machine without a GPU, for `vpmoe.runtime.cpu_lane`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from vpmoe.megatron.contract import Contract, Reads, Takes
from vpmoe.runtime.patches import replaced

CPU_START = Contract(
    "cpu start",
    "On the CPU lane vpMoE has `pretrain()` initialise with `allow_no_cuda=True`, and answers the "
    "random states of the GPU with the CPU's.",
    "See how this version initialises without CUDA and keeps random states, and adapt "
    "vpmoe/megatron/cpu.py.",
    (
        Takes(
            "megatron.training.initialize:initialize_megatron",
            keywords=("allow_no_cuda",),
        ),
        Reads("megatron.training.training:pretrain", names=("initialize_megatron",)),
        Takes("megatron.core.tensor_parallel.random:_get_cuda_rng_state", keywords=("device",)),
        Takes("megatron.core.tensor_parallel.random:_set_cuda_rng_state", ("new_state",)),
        Reads(
            "megatron.core.tensor_parallel.random:CudaRNGStatesTracker.fork",
            names=("_get_cuda_rng_state", "_set_cuda_rng_state"),
        ),
    ),
)

CONTRACTS = (CPU_START,)


@contextlib.contextmanager
def without_cuda(
    get_rng_state: Callable[..., Any], set_rng_state: Callable[..., None]
) -> Iterator[None]:
    """Lets Megatron start without CUDA for the length of the context.

    Args:
        get_rng_state: takes the place of the GPU's random state's getter.
        set_rng_state: of its setter.
    """
    CPU_START.check()
    import megatron.core.tensor_parallel.random as parallel_random
    import megatron.training.initialize as initialize
    import megatron.training.training as training

    allow_no_cuda = functools.partial(initialize.initialize_megatron, allow_no_cuda=True)
    with ExitStack() as stack:
        stack.enter_context(replaced(training, "initialize_megatron", allow_no_cuda))
        stack.enter_context(replaced(parallel_random, "_get_cuda_rng_state", get_rng_state))
        stack.enter_context(replaced(parallel_random, "_set_cuda_rng_state", set_rng_state))
        yield
