"""Repairs that Megatron's training needs on every lane; each is in force inside its context."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from vpmoe.megatron.contract import Contract, Exists, Reads, Takes
from vpmoe.runtime.patches import replaced

HELPER_BUILD = Contract(
    "helper build",
    "Megatron's wheel ships its compiled dataset helpers but no Makefile, so vpMoE replaces "
    "`compile_helpers`, which would run make in site-packages and end the process.",
    "See what builds the helpers now, and whether its wheel can; if it does, drop "
    "`skip_helper_build`.",
    (
        Takes("megatron.core.datasets.utils:compile_helpers"),
        Reads("megatron.training.initialize:_compile_dependencies", names=("compile_helpers",)),
    ),
)

INTERVAL_MEANS = Contract(
    "interval means",
    "0.19.2 carries the first iteration's losses into the next line of the training log "
    "(NVIDIA/Megatron-LM#6237, #6881; mended in #7092, after 0.19.2); vpMoE wraps `training_log` "
    "and decides `is_first_iteration` by the interval.",
    "See whether #7092 is in this version; if so, drop `interval_means`, else adapt its wrapper.",
    (
        Takes(
            "megatron.training.training:training_log",
            ("loss_dict", "total_loss_dict", "learning_rate", "iteration"),
            ("is_first_iteration",),
        ),
        Reads("megatron.training.training:train", names=("training_log", "is_first_iteration")),
    ),
)

RESUMABLE_SCHEDULE = Contract(
    "resumable schedule",
    "Megatron asserts that a resumed run has the saved number of weight-decay steps even where the "
    "decay is constant; vpMoE wraps `OptimizerParamScheduler.load_state_dict`.",
    "See what the scheduler saves and checks now, and adapt `resumable_schedule`.",
    (
        Takes(
            "megatron.core.optimizer_param_scheduler:OptimizerParamScheduler.load_state_dict",
            ("state_dict",),
        ),
        Reads(
            "megatron.core.optimizer_param_scheduler:OptimizerParamScheduler.load_state_dict",
            names=("wd_incr_steps",),
        ),
        Reads(
            "megatron.core.optimizer_param_scheduler:OptimizerParamScheduler.state_dict",
            names=("wd_incr_steps", "wd_incr_style"),
        ),
        Exists(
            "megatron.core.optimizer_param_scheduler:OptimizerParamScheduler._check_and_set",
        ),
    ),
)

STOP_AT_NAN = Contract(
    "stop at a number that is not finite",
    "0.19.2 runs a step again whose loss or gradient is not finite, and saves a checkpoint if it "
    "still is not: even without `--save`, where it fails on the missing folder, and after the step "
    "has moved the experts' bias. vpMoE wraps `save_checkpoint_and_time`.",
    "See what the loop of this version does between a result that is not finite and its exit.",
    (
        Takes(
            "megatron.training.training:save_checkpoint_and_time",
            ("iteration", "model", "optimizer"),
        ),
        Reads(
            "megatron.training.training:train",
            names=("save_checkpoint_and_time", "should_checkpoint", "should_exit"),
        ),
    ),
)

CONTRACTS = (HELPER_BUILD, INTERVAL_MEANS, RESUMABLE_SCHEDULE, STOP_AT_NAN)


@contextlib.contextmanager
def skip_helper_build() -> Iterator[None]:
    """Keeps Megatron from running `make` in site-packages.

    megatron-core's wheel ships the compiled `helpers_cpp` but no Makefile, and
    `_compile_dependencies` exits the process when make fails.
    """
    HELPER_BUILD.check()
    import megatron.core.datasets.utils as dataset_utils

    with replaced(dataset_utils, "compile_helpers", lambda: None):
        yield


@contextlib.contextmanager
def interval_means() -> Iterator[None]:
    """Makes every line of the training log a mean over the iterations since the interval began.

    Megatron prints the first iteration after a start or resume too, and keeps its sums for the
    interval that it belongs to. Where that iteration ends its interval, 0.19.2 carries them into
    the next line: at --log-interval 1 the second line is a mean of two iterations.
    """
    INTERVAL_MEANS.check()
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
    RESUMABLE_SCHEDULE.check()
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


@contextlib.contextmanager
def stop_at_nan() -> Iterator[None]:
    """Lets Megatron stop at a result that is not finite, with the checkpoint of the step before.

    Megatron runs such a step again; if the result comes back, it saves and exits, for a resumed run
    to try the step once more.
    """
    STOP_AT_NAN.check()
    import megatron.training.training as training
    from megatron.training import get_args

    original = training.save_checkpoint_and_time

    @functools.wraps(original)
    def save_checkpoint_and_time(
        iteration: int, model: Any, optimizer: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if get_args().save is None:
            training.print_rank_0(
                "no checkpoint is saved: there is no --save. The step after iteration "
                f"{iteration} was not taken; the message before this one says why"
            )
            return None
        from vpmoe.megatron.optimizer import FiniteChain

        if isinstance(optimizer, FiniteChain):
            optimizer.put_back()
        return original(iteration, model, optimizer, *args, **kwargs)

    with replaced(training, "save_checkpoint_and_time", save_checkpoint_and_time):
        yield
