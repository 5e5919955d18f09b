"""What is recorded of an optimizer step: its replay in fp64, clipped gradients, state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases.replay import Before, Replayed, before_step, polynomials, replay, ulp_shares
from vpmoe.cases.statics import named_parameters, norm_of, parts, sampled

Befores = list[tuple[str, Before]]


def before_update(
    recorder: Recorder, step: int, model: Sequence[torch.nn.Module], optimizer: Any
) -> Befores:
    """Records the norm of the clipped gradients; keeps what a traced step's replay needs."""
    from megatron.training import get_args

    befores, squares, wanted = [], 0.0, polynomials(get_args())
    for name, parameter, inner, group in stepped(model, optimizer):
        if parameter.grad is not None:
            squares += norm_of(sampled(parameter.grad)) ** 2
        if recorder.wants(step):
            before = before_step(parameter, inner, group, wanted)
            if before is not None:
                befores.append((name, before))
    recorder.curve(step, "clipped_grad_norm", squares**0.5, "optimizer")
    return befores


def after_update(
    recorder: Recorder,
    step: int,
    model: Sequence[torch.nn.Module],
    optimizer: Any,
    befores: Befores,
) -> None:
    """Replays a traced step, and records the state that it left."""
    kinds: dict[str, list[Replayed]] = {}
    for name, before in befores:
        replayed = replay(before)
        kinds.setdefault(before.kind, []).append(replayed)
        module, _, tensor = name.rpartition(".")
        recorder.invariant(
            module,
            "the update is its formula's in fp64",
            replayed.error,
            replayed.bound,
            step=step,
            phase="optimizer",
            tensor=f"{tensor}.replay",
            optimizer=before.kind,
        )
    for kind, steps in sorted(kinds.items()):
        # A more exact optimizer is no change of behaviour: kept, not compared.
        recorder.note(f"replay_ulps/{kind}/step{step}", ulp_shares(steps))
    if not recorder.wants(step):
        return
    for name, parameter, inner, _ in stepped(model, optimizer):
        module, _, tensor = name.rpartition(".")
        for key, value in sorted(inner.state.get(parameter, {}).items()):
            if isinstance(value, torch.Tensor) and value.ndim:
                recorder.tensor(
                    step=step,
                    micro_batch=0,
                    phase="optimizer",
                    module=module,
                    tensor=f"{tensor}.{key}",
                    value=value,
                )


def stepped(
    model: Sequence[torch.nn.Module], optimizer: Any
) -> Iterator[tuple[str, torch.Tensor, Any, Mapping[str, Any]]]:
    """(name, fp32 parameter that is stepped on, torch's optimizer, group), in a fixed order."""
    names = {id(parameter): name for name, parameter in named_parameters(model)}
    for parameter, stepped, inner, group in stepped_parameters(optimizer):
        yield names[id(parameter)], stepped, inner, group


def stepped_parameters(
    optimizer: Any,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, Any, Mapping[str, Any]]]:
    """What Megatron's optimizer steps on.

    Args:
        optimizer: Megatron's, or its chain of them.

    Yields:
        The model's parameter, the fp32 one that is stepped on (itself, or its main copy), torch's
        optimizer, its group; in a fixed order.
    """
    for part in parts(optimizer):
        halves = [h for group in getattr(part, "float16_groups", ()) for h in group]
        mains = [m for group in getattr(part, "fp32_from_float16_groups", ()) for m in group]
        half_of = {id(main): half for half, main in zip(halves, mains, strict=True)}
        for group in part.optimizer.param_groups:
            for stepped in group["params"]:
                yield half_of.get(id(stepped), stepped), stepped, part.optimizer, group
