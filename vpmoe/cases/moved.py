"""What a checkpoint holds, as it was saved by one layout and as another has loaded it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from validation.files import encode_json
from validation.running.recorder import Recorder
from vpmoe.cases.canonical import CanonicalModel, optimizer_states
from vpmoe.cases.updates import stepped_parameters

Place = tuple[str, str]
"""Module and tensor, as records have them."""


@dataclass(frozen=True)
class Content:
    """What a training goes on from, on every rank together.

    Attributes:
        tensors: digest of each part of the weights, of the saved buffers and of the optimizer's
            state, under the names that all layouts have.
        facts: by name: counts, schedules, and what Adam counts; JSON values.
        layout: tensor- and pipeline-parallel size.
        random: digest of the random states, by tensor- and pipeline-parallel rank.
    """

    tensors: Mapping[Place, str]
    facts: Mapping[str, Any]
    layout: tuple[int, int]
    random: Mapping[tuple[int, int], str]


class Checkpoint:
    """Compares what a training saved with what the next one, of another layout, has loaded.

    Args:
        recorder: of this process; receives an invariant of each part that this rank has loaded,
            and of each fact.
        with_optimizer: the optimizer's state, and the schedule with it, is loaded too.
    """

    def __init__(self, recorder: Recorder, with_optimizer: bool) -> None:
        self.recorder = recorder
        self.with_optimizer = with_optimizer
        self._saved: Content | None = None

    def saved(self) -> AbstractContextManager[None]:
        """Inside, a training is expected to save a checkpoint."""
        from vpmoe.megatron.points import SAVE_CHECKPOINT

        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def save_checkpoint(*args: Any, **kwargs: Any) -> Any:
                given = SAVE_CHECKPOINT.arguments(args, kwargs)
                self._saved = _of_all_ranks(
                    content_of(
                        given["model"],
                        given["optimizer"],
                        given["opt_param_scheduler"],
                        given["iteration"],
                    )
                )
                return original(*args, **kwargs)

            return save_checkpoint

        return SAVE_CHECKPOINT.wrapped(wrap)

    @contextlib.contextmanager
    def loaded(self) -> Iterator[None]:
        """Inside, a training is expected to load it, which must be all that was saved.

        Raises:
            RuntimeError: nothing was saved before.
        """
        from megatron.training import get_args

        from vpmoe.megatron.points import SETUP

        saved = self._saved
        if saved is None:
            raise RuntimeError("the training that was to save a checkpoint saved none")

        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def setup_model_and_optimizer(*args: Any, **kwargs: Any) -> Any:
                model, optimizer, scheduler = original(*args, **kwargs)
                iteration = get_args().iteration
                self._compare(saved, content_of(model, optimizer, scheduler, iteration), iteration)
                return model, optimizer, scheduler

            return setup_model_and_optimizer

        with SETUP.wrapped(wrap):
            yield

    def _compare(self, saved: Content, loaded: Content, step: int) -> None:
        def record(module: str, tensor: str, equal: bool, **facts: Any) -> None:
            self.recorder.invariant(
                module,
                "loaded as it was saved",
                float(not equal),
                0.0,
                step=step,
                phase="resume",
                tensor=tensor,
                **facts,
            )

        for name, value in loaded.facts.items():
            if self.with_optimizer or name.startswith("data"):
                record(name, "fact", saved.facts.get(name) == value, value=value)
        for (module, tensor), digest in loaded.tensors.items():
            if self.with_optimizer or tensor.partition("[")[0].endswith(".value"):
                record(module, tensor, saved.tensors.get((module, tensor)) == digest)
        for rank, digest in loaded.random.items():
            # Megatron starts them anew at another tensor- or pipeline-parallel size.
            if saved.layout == loaded.layout:
                record("random", "states", saved.random[rank] == digest)
            self.recorder.discrete("random", digest, tensor="digest", step=step, phase="resume")


def content_of(
    model: Sequence[torch.nn.Module], optimizer: Any, scheduler: Any, iteration: int
) -> Content:
    """What this rank has of what a training goes on from.

    Args:
        model: Megatron's model chunks of this rank.
        optimizer: Megatron's chain over their parameters.
        scheduler: Megatron's, of the learning rate and the decay.
        iteration: steps that were taken.

    Returns:
        Its part of the checkpoint's content.
    """
    from megatron.core import parallel_state
    from megatron.training import get_args

    from vpmoe.megatron.shards import random_states

    args, canonical = get_args(), CanonicalModel(model)
    values = {id(p): main.detach() for p, main, _, _ in stepped_parameters(optimizer)}
    kinds = {"value": {**values, **canonical.buffers}, **optimizer_states(optimizer)}
    tensors = {}
    for kind, found in kinds.items():
        for key, place, value in canonical.parts(found):
            module, _, tensor = key.rpartition(".")
            tensors[module, f"{tensor}.{kind}{place}"] = _digest(value)
    facts = {
        "data/consumed_train_samples": int(args.consumed_train_samples),
        "data/iteration": int(iteration),
        **{f"schedule/{name}": value for name, value in sorted(scheduler.state_dict().items())},
        "optimizer/steps": sorted(_adam_steps(optimizer)),
    }
    layout = (args.tensor_model_parallel_size, args.pipeline_model_parallel_size)
    random = hashlib.blake2b(digest_size=8)
    for _, state in random_states():
        random.update(state)
    rank = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
    )
    return Content(tensors, facts, layout, {rank: random.hexdigest()})


def _adam_steps(optimizer: Any) -> set[int]:
    """How many steps AdamW has counted: of its parameters, or of its groups."""
    return {
        int(count)
        for _, stepped, inner, group in stepped_parameters(optimizer)
        if "betas" in group
        for count in (inner.state.get(stepped, {}).get("step", group.get("step")),)
        if count is not None
    }


def _digest(value: torch.Tensor) -> str:
    content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    header = encode_json([str(value.dtype), list(value.shape)])
    return hashlib.blake2b(header + bytes(content), digest_size=8).hexdigest()


def _of_all_ranks(content: Content) -> Content:
    """The parts and random states of all ranks; facts are this rank's.

    Of the ranks that share a place in the model, Megatron saves the first one's random states.
    """
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, (dict(content.tensors), dict(content.random)))
    tensors, random = {}, {}
    for theirs, states in reversed(gathered):
        tensors.update(theirs)
        random.update(states)
    return Content(tensors, content.facts, content.layout, random)
