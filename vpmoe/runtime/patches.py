"""Replacing an attribute for a while, and the repairs that Megatron needs on every lane."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

_MISSING = object()


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets `owner.name` to `value` and puts the former attribute back on leaving."""
    before = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextlib.contextmanager
def skip_helper_build() -> Iterator[None]:
    """Keeps Megatron from running `make` in site-packages.

    megatron-core's wheel ships the compiled `helpers_cpp` but no Makefile, and
    `_compile_dependencies` exits the process when make fails.
    """
    import megatron.core.datasets.utils as dataset_utils

    with replaced(dataset_utils, "compile_helpers", lambda: None):
        yield


@contextlib.contextmanager
def interval_means() -> Iterator[None]:
    """Makes every line of the training log a mean over the iterations since the interval began.

    Megatron prints the first iteration after a start or resume too, and keeps its sums for the
    interval that it belongs to. Where that iteration ends its interval, 0.19.2 carries them into
    the next line: at --log-interval 1 the second line is a mean of two iterations
    (NVIDIA/Megatron-LM#6237, #6881; mended in #7092, after 0.19.2).
    """
    import megatron.training.training as training
    from megatron.training import get_args

    original = training.training_log

    @functools.wraps(original)
    def training_log(
        losses: Any,
        sums: Any,
        learning_rate: Any,
        iteration: int,
        *args: Any,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> Any:
        kept = is_first_iteration and iteration % get_args().log_interval != 0
        return original(
            losses, sums, learning_rate, iteration, *args, is_first_iteration=kept, **kwargs
        )

    with replaced(training, "training_log", training_log):
        yield


@contextlib.contextmanager
def resumable_schedule() -> Iterator[None]:
    """Lets a resumed run have another `--train-iters`, and says what to do where schedules differ.

    Megatron saves the number of iterations over which weight decay rises, which follows
    `--train-iters`, and asserts that it is the same in a resumed run, also where the decay is
    constant and nothing depends on it.
    """
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    original = OptimizerParamScheduler.load_state_dict

    @functools.wraps(original)
    def load_state_dict(self: Any, state: dict[str, Any]) -> None:
        if self.wd_incr_style == state.get("wd_incr_style") == "constant":
            state = {**state, "wd_incr_steps": self.wd_incr_steps}
        try:
            original(self, state)
        except AssertionError as error:
            raise ValueError(
                f"{error}. Give the flag of the schedule its saved value, --lr-decay-iters where "
                "--train-iters alone set it; or go on with this run's schedule: "
                "--override-opt-param-scheduler, or the saved one: "
                "--use-checkpoint-opt-param-scheduler"
            ) from error

    with replaced(OptimizerParamScheduler, "load_state_dict", load_state_dict):
        yield
