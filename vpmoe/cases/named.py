"""Parameters under names that no layout changes, and which part of each a rank holds.

Nothing of vpMoE's own naming, marks or slicing is used: what is checked with it must not vouch for
itself. Where a parameter is smaller than the whole one, this rank's part is the one of its number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_LOCAL_EXPERT = re.compile(r"experts\.local_experts\.(\d+)\.")
_STACKED = re.compile(r"experts\.weight([12])$")


@dataclass(frozen=True)
class Named:
    """A parameter, or one expert's matrix of a stack.

    Attributes:
        name: with layers counted from 0, and experts, over the whole model.
        key: the same, told apart where chunks of a virtual pipeline hold copies.
        parameter: it.
        index: of the expert in a stack; None for all of the parameter.
        shards: ranks that a sharded dimension is divided among.
        shard: this rank's number among them.
    """

    name: str
    key: str
    parameter: torch.nn.Parameter
    index: int | None
    shards: int
    shard: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """This part of a tensor of the parameter's shape."""
        return tensor if self.index is None else tensor[self.index]

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part of the whole tensor: along the dimension that is shorter here."""
        here = self.of(self.parameter).shape
        for axis, (size, full) in enumerate(zip(here, whole.shape, strict=False)):
            if size * self.shards == full and size != full:
                return whole.chunk(self.shards, dim=axis)[self.shard]
        return whole


def named_parts(chunks: Sequence[torch.nn.Module]) -> Iterator[Named]:
    """Every parameter of this rank's model chunks; inside Megatron's process groups."""
    from megatron.core import parallel_state as groups

    tensor = (
        groups.get_tensor_model_parallel_world_size(),
        groups.get_tensor_model_parallel_rank(),
    )
    expert = (
        groups.get_expert_tensor_parallel_world_size(),
        groups.get_expert_tensor_parallel_rank(),
    )
    seen: set[str] = set()
    for number, chunk in enumerate(chunks):
        numbers = {
            name: module.layer_number - 1
            for name, module in chunk.named_modules()
            if re.fullmatch(r"decoder\.layers\.\d+", name)
        }
        for name, parameter in chunk.named_parameters():
            found = _LAYER.match(name)
            if found:
                layer = found.group(0).rstrip(".")
                name = f"decoder.layers.{numbers[layer]}{name[len(layer) :]}"
            routed = ".experts." in name and ".shared_experts." not in name
            shards, shard = expert if routed else tensor
            for full, index in _experts(name, parameter):
                key = full if full not in seen else f"chunk{number}.{full}"
                seen.add(full)
                yield Named(full, key, parameter, index, shards, shard)


def _experts(name: str, parameter: torch.nn.Parameter) -> Iterator[tuple[str, int | None]]:
    from megatron.core import parallel_state as groups

    rank = groups.get_expert_model_parallel_rank()
    stacked, local = _STACKED.search(name), _LOCAL_EXPERT.search(name)
    if stacked:
        stem = name[: stacked.start()]
        for index in range(len(parameter)):
            number = rank * len(parameter) + index
            yield f"{stem}experts.local_experts.{number}.linear_fc{stacked.group(1)}.weight", index
    elif local:
        from megatron.training import get_args

        count = get_args().num_experts // groups.get_expert_model_parallel_world_size()
        number = rank * count + int(local.group(1))
        yield f"{name[: local.start(1)]}{number}{name[local.end(1) :]}", None
    else:
        yield name, None
