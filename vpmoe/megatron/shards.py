"""Which part of the whole model each of a rank's tensors is, as distributed checkpoints say it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from vpmoe.megatron.contract import Contract, Reads, Takes

SHARDS = Contract(
    "shards of a model",
    "The cases of several processes name each parameter as the model's sharded state does, and "
    "find its part of the whole tensor there. The entry holds the parameter itself.",
    "See how `sharded_state_dict` of this version describes parameters, and adapt "
    "vpmoe/megatron/shards.py.",
    (
        Takes(
            "megatron.core.transformer.module:MegatronModule.sharded_state_dict",
            ("prefix", "sharded_offsets", "metadata"),
        ),
        Takes(
            "megatron.core.dist_checkpointing.mapping:ShardedTensor",
            ("key", "data"),
            ("global_shape", "global_offset", "prepend_axis_num"),
        ),
        Reads(
            "megatron.core.dist_checkpointing.optimizer:get_param_id_to_sharded_param_map",
            names=("data",),
        ),
    ),
)

RANDOM_STATES = Contract(
    "random states in a checkpoint",
    "The cases whose checkpoint changes its layout compare the random states that Megatron saves.",
    "See what `get_rng_state` of this version saves, and adapt `random_states`.",
    (
        Takes("megatron.core.tensor_parallel.random:get_cuda_rng_tracker"),
        Takes("megatron.core.tensor_parallel.random:CudaRNGStatesTracker.get_states"),
        Reads(
            "megatron.training.checkpointing:get_rng_state",
            names=("get_cuda_rng_tracker", "get_states", "get_rng_state"),
        ),
    ),
)

CONTRACTS = (SHARDS, RANDOM_STATES)


@dataclass(frozen=True)
class Shard:
    """A rank's part of a tensor of the whole model.

    Attributes:
        key: of the whole tensor, the same in every layout; layers are counted over all stages, and
            all experts of a layer are one stack.
        whole: shape of the whole tensor.
        offset: of this part, by axis.
        shape: of this part, as an axis of the whole has it: an expert of a stack is [1, m, n].
    """

    key: str
    whole: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]


def shards_of(model: Sequence[Any]) -> Iterator[tuple[Shard, torch.Tensor]]:
    """Describes the parameters and saved buffers of this rank.

    Args:
        model: Megatron's model chunks of this rank, without their wrappers.

    Yields:
        Each shard, with the parameter or buffer itself.
    """
    SHARDS.check()
    for chunk in model:
        for entry in chunk.sharded_state_dict().values():
            if isinstance(entry, ShardedTensor) and entry.data is not None:
                shape = (*[1] * entry.prepend_axis_num, *entry.data.shape)
                yield Shard(entry.key, entry.global_shape, entry.global_offset, shape), entry.data


def random_states() -> Iterator[tuple[str, bytes]]:
    """The random states of this rank that Megatron saves, by generator, in a fixed order."""
    import random

    import numpy as np

    RANDOM_STATES.check()
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    kind, keys, *rest = np.random.get_state(legacy=True)
    yield "python", repr(random.getstate()).encode()
    yield "numpy", f"{kind} {np.asarray(keys).tolist()} {rest}".encode()
    yield "torch", torch.get_rng_state().numpy().tobytes()
    if torch.cuda.is_available():
        yield "cuda", torch.cuda.get_rng_state().numpy().tobytes()
    for name, state in sorted(get_cuda_rng_tracker().get_states().items()):
        yield name, bytes(state.cpu().numpy().tobytes())
