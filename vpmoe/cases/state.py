"""The state of a training, as digests by name: what a skipped step or an evaluation must keep.

Digests are compared within a run. They are no records of a golden, where bits may move.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vpmoe.cases.statics import named_parameters, unwrap
from vpmoe.cases.updates import stepped_parameters


@dataclass(frozen=True)
class Place:
    """What of a training a digest is of.

    Attributes:
        module: a module of the model, or `schedule`, `rng`, `data`, `router_losses`, `mode`.
        tensor: of it.
    """

    module: str
    tensor: str


State = Mapping[Place, str]


def training_state(model: Sequence[torch.nn.Module], optimizer: Any, scheduler: Any) -> State:
    """Digests of what a step changes: weights, optimizer state, buffers, schedule.

    Args:
        model: Megatron's model chunks.
        optimizer: Megatron's.
        scheduler: Megatron's, of learning rates and decay.

    Returns:
        A digest for each weight, each tensor of the optimizer's state (`weight.momentum_buffer`),
        each saved or passing buffer, and the schedule's steps.
    """
    found = {_place(name): _digest(weight) for name, weight in named_parameters(model)}
    for name, key, value in _optimizer_state(model, optimizer):
        module, _, weight = name.rpartition(".")
        found[Place(module, f"{weight}.{key}")] = _digest(value)
    for chunk in model:
        for name, buffer in unwrap(chunk).named_buffers():
            found[_place(name)] = _digest(buffer)
    found[Place("schedule", "num_steps")] = str(scheduler.num_steps)
    return found


def surroundings(model: Sequence[torch.nn.Module]) -> State:
    """Digests of what surrounds a step: random numbers, data position, losses, modes.

    Args:
        model: Megatron's model chunks.

    Returns:
        A digest for each generator, the consumed samples, the routers' losses that wait to be
        logged, and each module's mode (`training` or not).
    """
    from megatron.training import get_args

    from vpmoe.megatron.moe import waiting_losses
    from vpmoe.megatron.shards import random_states

    found = {
        **{Place("rng", name): _of_bytes(state) for name, state in random_states()},
        Place("data", "consumed_train_samples"): str(get_args().consumed_train_samples),
        Place("router_losses", "waiting"): _text(json.dumps(waiting_losses(), sort_keys=True)),
    }
    for chunk in model:
        for name, module in chunk.named_modules():
            found[Place(name or "model", "training")] = str(module.training)
    return found


def differing(before: State, after: State) -> list[Place]:
    """What is not as it was: another digest, or on one side only; in the order of `before`."""
    places = [*before, *(place for place in after if place not in before)]
    return [place for place in places if before.get(place) != after.get(place)]


def _place(name: str) -> Place:
    module, _, tensor = name.rpartition(".")
    return Place(module, tensor)


def _optimizer_state(
    model: Sequence[torch.nn.Module], optimizer: Any
) -> Iterator[tuple[str, str, Any]]:
    """(parameter, key, value) of all optimizers in the chain, and of mixed precision's weights."""
    names = {id(parameter): name for name, parameter in named_parameters(model)}
    for parameter, stepped, inner, group in stepped_parameters(optimizer):
        name = names[id(parameter)]
        if stepped is not parameter:
            yield name, "main", stepped
        for key, value in sorted(inner.state.get(stepped, {}).items()):
            yield name, key, value
        if "step" in group:
            yield name, "step", group["step"]


def _digest(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return _text(repr(value))
    flat = value.detach().cpu().contiguous().flatten()
    raw = flat.view(torch.uint8).numpy() if flat.numel() else b""
    return _of_bytes(raw)


def _text(text: str) -> str:
    return _of_bytes(text.encode())


def _of_bytes(content: Any) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
