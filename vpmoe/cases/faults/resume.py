"""Bugs in what a resumed run loads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vpmoe.cases.faults.planting import (
    Planted,
    fault,
    patched,
    rounded,
    skipped,
    with_flags,
)
from vpmoe.megatron import points


def after_loading(act: Callable[[Any, Any], None]) -> Planted:
    """Calls `act(model chunks, optimizer)` once a checkpoint has been loaded."""

    def wrap(original: Any) -> Any:
        def load_checkpoint(model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            found = original(model, optimizer, *args, **kwargs)
            act(model, optimizer)
            return found

        return load_checkpoint

    return patched(*points.LOAD_CHECKPOINT.place, wrap)


def clear_expert_bias(model: Any, optimizer: Any) -> None:
    """Sets the balancing bias of every router to zero."""
    del optimizer
    for chunk in model:
        for name, buffer in chunk.named_buffers():
            if name.endswith("expert_bias"):
                buffer.zero_()


def states_of(optimizer: Any) -> Any:
    """The state of each parameter, of all optimizers in Megatron's chain."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        yield from part.optimizer.state.values()


@fault(
    "optimizer-state-dropped",
    "resume",
    "optimizer",
    "a resumed run whose optimizer starts anew (https://github.com/IntelLabs/distiller/issues/145)",
    case="resume",
    steps=2,
    canary=False,
)
def optimizer_state_dropped() -> Planted:
    """A resumed run does not load the optimizer."""
    return with_flags("--no-load-optim", resumed=True)


@fault(
    "second-moment-dropped",
    "resume",
    "optimizer",
    "a state that is not in the checkpoint",
    case="resume",
    steps=2,
    canary=False,
)
def second_moment_dropped() -> Planted:
    """NorMuon's second moment starts at zero after a resume."""

    def act(model: Any, optimizer: Any) -> None:
        for state in states_of(optimizer):
            if "second_momentum" in state:
                state["second_momentum"].zero_()

    return after_loading(act)


@fault(
    "step-count-dropped",
    "resume",
    "optimizer",
    "a bias correction that begins anew",
    case="resume",
    steps=2,
    canary=False,
)
def step_count_dropped() -> Planted:
    """AdamW counts its steps from 1 again after a resume."""

    def act(model: Any, optimizer: Any) -> None:
        for state in states_of(optimizer):
            if "exp_avg" in state:
                state["step"].zero_()

    return after_loading(act)


@fault(
    "expert-bias-dropped",
    "resume",
    "router",
    "a buffer that is not in the checkpoint",
    case="resume",
    steps=2,
    canary=False,
)
def expert_bias_dropped() -> Planted:
    """The balancing bias starts at zero after a resume."""
    return after_loading(clear_expert_bias)


@fault(
    "schedule-restarted",
    "resume",
    "optimizer",
    "a scheduler that is not loaded (https://github.com/lightly-ai/lightly-train/pull/301)",
    case="resume",
    steps=2,
    canary=False,
)
def schedule_restarted() -> Planted:
    """The learning rate begins again after a resume."""
    return skipped(*points.LOAD_SCHEDULE.place)


@fault(
    "samples-skipped",
    "resume",
    "batch",
    "a resumed run that counts its last batch twice",
    case="resume",
    steps=2,
    canary=False,
)
def samples_skipped() -> Planted:
    """A resumed run goes on one batch further than it stopped."""

    def act(model: Any, optimizer: Any) -> None:
        from megatron.training import get_args

        args = get_args()
        args.consumed_train_samples += args.global_batch_size

    return after_loading(act)


@fault(
    "weights-saved-in-bf16",
    "resume",
    "weight",
    "a checkpoint of half the size",
    case="resume",
    steps=2,
    canary=False,
)
def weights_saved_in_bf16() -> Planted:
    """Loaded weights are rounded to bf16."""

    def act(model: Any, optimizer: Any) -> None:
        for chunk in model:
            for parameter in chunk.parameters():
                parameter.data.copy_(rounded(parameter.data))

    return after_loading(act)


@fault(
    "random-state-dropped",
    "resume",
    "training",
    "a resumed run with fresh random numbers",
    case="resume",
    steps=2,
    equivalent="vpMoE draws nothing after its weights: no dropout, and an order of samples that "
    "depends on the seed alone",
)
def random_state_dropped() -> Planted:
    """A resumed run does not load the random number generators."""
    return with_flags("--no-load-rng", resumed=True)
