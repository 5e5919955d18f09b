"""Tensors of a training on several processes, named and cut alike in every layout.

A layout gives each rank parts of some tensors and copies of others, under names that count a
stage's own layers and a rank's own experts. Here every part has the name that it has in the whole
model, and its place there: module `decoder.layers.1.mlp.experts.experts.linear_fc1`, tensor
`weight.grad[0:4,0:16,:]`. A training on one process records the same parts under the same names, so
that a case's invariant holds each rank to it.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases.statics import gradient_of, named_parameters, unwrap
from vpmoe.cases.updates import stepped_parameters
from vpmoe.megatron.shards import Shard, shards_of

# Tensors are cut into so many parts along each axis that a layout may shard: the experts of a
# layer, and the axis of tensor parallelism. The layouts of these cases shard into no more.
_CUTS = 2

Tensors = Mapping[int, torch.Tensor]
"""By the identity of the parameter, or buffer, that each belongs to."""


class CanonicalModel:
    """This rank's parts of the whole model.

    `parameters` holds this rank's, in the model's order; `buffers` those saved ones that a training
    moves, such as the routers' balancing bias.

    Args:
        model: Megatron's model chunks of this rank.

    Raises:
        ValueError: the model's sharded state lacks a parameter.
    """

    def __init__(self, model: Sequence[torch.nn.Module]) -> None:
        named = list(named_parameters(model))
        described = {id(t): (s, t) for s, t in shards_of([unwrap(chunk) for chunk in model])}
        for name, parameter in named:
            if id(parameter) not in described:
                raise ValueError(f"{name}: the model's sharded state does not have this parameter")
        self.parameters: Tensors = {id(parameter): parameter for _, parameter in named}
        self.buffers: Tensors = {
            number: tensor
            for number, (_, tensor) in described.items()
            if number not in self.parameters
        }
        self._shards: defaultdict[str, dict[int, Shard]] = defaultdict(dict)
        self._cut_axes: dict[str, set[int]] = {}
        for number, tensor in {**self.parameters, **self.buffers}.items():
            shard = described[number][0]
            self._shards[shard.key][number] = shard
            self._cut_axes[shard.key] = _cut_axes(shard, tensor)

    def parts(self, values: Tensors) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Puts a rank's tensors together and cuts them as every layout does.

        Args:
            values: shaped as what they belong to, or with a last axis of 1: a number a row.

        Yields:
            Name of the whole tensor, place of the part in it (empty where it is all), the part.
        """
        for key, shards in self._shards.items():
            pieces = [
                (_fitting(shard, values[number]), values[number].detach())
                for number, shard in shards.items()
                if number in values
            ]
            if pieces:
                whole, offset, box = _put_together(key, pieces)
                yield from _cut(key, whole, offset, box, self._cut_axes[key])


def _cut_axes(shard: Shard, tensor: torch.Tensor) -> set[int]:
    """Axes of the whole tensor that some layout shards."""
    axes = {0} if len(shard.whole) == 3 else set()  # the experts of a layer
    if getattr(tensor, "tensor_model_parallel", False):
        dimension: int = tensor.partition_dim  # type: ignore[attr-defined]
        axes.add(dimension + len(shard.whole) - tensor.ndim)
    return axes


def _fitting(shard: Shard, value: torch.Tensor) -> Shard:
    """The shard of a value that has a number for each row where its weight has columns."""
    if value.shape[-1:] != (1,) or shard.shape[-1] == 1:
        return shard
    return replace(
        shard,
        whole=(*shard.whole[:-1], 1),
        offset=(*shard.offset[:-1], 0),
        shape=(*shard.shape[:-1], 1),
    )


def _put_together(
    key: str, pieces: Sequence[tuple[Shard, torch.Tensor]]
) -> tuple[tuple[int, ...], tuple[int, ...], torch.Tensor]:
    """Shape of the whole tensor, where the pieces begin in it, and the box that they fill."""
    first, value = pieces[0]
    if len(pieces) == 1:
        return first.whole, first.offset, value.reshape(first.shape)
    axes = range(len(first.whole))
    begin = tuple(min(shard.offset[axis] for shard, _ in pieces) for axis in axes)
    end = [max(shard.offset[axis] + shard.shape[axis] for shard, _ in pieces) for axis in axes]
    box = value.new_empty([stop - start for start, stop in zip(begin, end, strict=True)])
    if sum(math.prod(shard.shape) for shard, _ in pieces) != box.numel():
        raise ValueError(f"{key}: this rank's parts of it are no connected part of the whole")
    for shard, piece in pieces:
        place = tuple(
            slice(offset - start, offset - start + length)
            for offset, start, length in zip(shard.offset, begin, shard.shape, strict=True)
        )
        box[place] = piece.reshape(shard.shape)
    return first.whole, begin, box


def _cut(
    key: str, whole: tuple[int, ...], offset: tuple[int, ...], box: torch.Tensor, axes: set[int]
) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yields the parts of a box, each with the whole tensor's name and its place there."""
    ranges = []
    for axis, (size, start, length) in enumerate(zip(whole, offset, box.shape, strict=True)):
        step = size // _CUTS if axis in axes and size % _CUTS == 0 else size
        if start % step or length % step:
            raise ValueError(
                f"{key}: {start}:{start + length} of {size} on axis {axis} is finer than the "
                f"{_CUTS} parts that the cases compare"
            )
        ranges.append([(at, at + step) for at in range(start, start + length, step)])
    for cell in itertools.product(*ranges):
        entire = [stop - start == size for (start, stop), size in zip(cell, whole, strict=True)]
        words = [
            ":" if full else f"{start}:{stop}"
            for (start, stop), full in zip(cell, entire, strict=True)
        ]
        within = tuple(slice(a - o, b - o) for (a, b), o in zip(cell, offset, strict=True))
        yield key, "" if all(entire) else f"[{','.join(words)}]", box[within]


def record_canonical(
    recorder: Recorder,
    model: Sequence[torch.nn.Module],
    optimizer: Any,
    step: Callable[[], int],
) -> None:
    """Records the initial weights now, and hangs on the optimizer what records each traced step.

    Of a step: gradients after reduction and before clipping, the routers' balancing bias, the
    gradient norm that clips, then every parameter's update, optimizer state and new weight.

    Args:
        recorder: of this process.
        model: Megatron's model chunks of this rank.
        optimizer: Megatron's chain over their parameters.
        step: tells the current step, from 1.
    """
    canonical = CanonicalModel(model)

    def record(phase: str, kind: str, values: Tensors, at: int) -> None:
        for key, place, value in canonical.parts(values):
            module, _, tensor = key.rpartition(".")
            recorder.tensor(
                step=at,
                micro_batch=0,
                phase=phase,
                module=module,
                tensor=f"{tensor}.{kind}{place}",
                value=value,
            )

    prepare, norm, step_ready = (
        optimizer.prepare_grads,
        optimizer.get_grad_norm,
        optimizer.step_with_ready_grads,
    )

    def prepare_grads() -> bool:
        found_inf = bool(prepare())
        if recorder.wants(step()):
            record("reduction", "grad", _gradients(canonical.parameters), step())
            record("reduction", "value", canonical.buffers, step())
        return found_inf

    def get_grad_norm() -> Any:
        found = norm()
        recorder.tensor(
            step=step(),
            micro_batch=0,
            phase="reduction",
            module="training",
            tensor="grad_norm",
            value=torch.tensor(float(found), dtype=torch.float64),
        )
        return found

    def step_with_ready_grads() -> bool:
        if not recorder.wants(step()):
            return bool(step_ready())
        stepped = {id(p): main.detach() for p, main, _, _ in stepped_parameters(optimizer)}
        before = {number: weight.clone() for number, weight in stepped.items()}
        success = bool(step_ready())
        # In place: a fresh buffer of the embedding's size costs more than the arithmetic.
        moved = {n: before.pop(n).neg_().add_(weight) for n, weight in stepped.items()}
        record("optimizer", "update", moved, step())
        for name, values in optimizer_states(optimizer).items():
            record("optimizer", name, values, step())
        record("optimizer", "value", stepped, step())
        return success

    optimizer.prepare_grads = prepare_grads
    optimizer.get_grad_norm = get_grad_norm
    optimizer.step_with_ready_grads = step_with_ready_grads
    record("init", "value", canonical.parameters, 0)


def _gradients(parameters: Tensors) -> Tensors:
    found = {}
    for number, parameter in parameters.items():
        gradient = gradient_of(parameter)
        if gradient is not None:
            found[number] = gradient
    return found


def optimizer_states(optimizer: Any) -> dict[str, Tensors]:
    """The optimizer's tensors by name, each by the model's parameter that it belongs to."""
    found: defaultdict[str, dict[int, torch.Tensor]] = defaultdict(dict)
    for parameter, stepped, inner, _ in stepped_parameters(optimizer):
        for name, value in inner.state.get(stepped, {}).items():
            if isinstance(value, torch.Tensor) and value.ndim:
                found[name][id(parameter)] = value
    return dict(sorted(found.items()))
