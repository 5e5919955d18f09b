"""The training entry, on every lane: Megatron's own `pretrain()` with vpMoE's providers.

    vpmoe pretrain --config configs/vpmoe-tiny.toml --synth-kd-data DIR --train-iters 20
    torchrun --nproc-per-node 2 -m vpmoe.pretrain --config ... --tensor-model-parallel-size 2

Flags are Megatron's and vpMoE's; `--config FILE` puts a preset's flags before them. Started
without torchrun, it is a world of one process.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from vpmoe.config import PresetError, expand_preset_flags
from vpmoe.megatron.repairs import (
    interval_means,
    resumable_schedule,
    skip_helper_build,
    stop_at_nan,
)
from vpmoe.runtime import detect_lane
from vpmoe.runtime.lane import in_words

_PROGRAM = "vpmoe pretrain"

# A preset is enough to start: what Megatron insists on and a user has no reason to choose.
_DEFAULT_FLAGS = ("--eval-interval", "1000000", "--no-one-logger", "--ckpt-format", "torch_dist")


def main(argv: Sequence[str] | None = None) -> int:
    """Trains.

    Args:
        argv: flags without the program's name; `sys.argv[1:]` when None.

    Returns:
        The exit status: 0, or 2 for an unusable preset.

    Raises:
        ValueError: a combination of flags that vpMoE or Megatron refuses.
        AssertionError: one that Megatron refuses with a message of its own.
        MegatronChangedError: the installed megatron-core is not what vpMoE relies on.
        SystemExit: Megatron's parser refused a flag.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    lane = detect_lane()
    try:
        flags = [*_DEFAULT_FLAGS, *lane.default_flags, *expand_preset_flags(given)]
    except PresetError as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 2
    with _process_environment(), _determinism_restored():
        if os.environ["RANK"] == "0":
            print(f"{_PROGRAM}: {in_words(lane)}", file=sys.stderr, flush=True)
        with (
            lane.activate(),
            skip_helper_build(),
            interval_means(),
            resumable_schedule(),
            stop_at_nan(),
        ):
            _train(flags)
    return 0


def _train(flags: list[str]) -> None:
    """Parses the flags and runs Megatron's loop; imports Megatron only now, inside the lane."""
    from vpmoe.megatron.contracts import check_training

    check_training()
    from vpmoe.arguments import add_vpmoe_args, refuse_vpmoe_args, validate_vpmoe_args
    from vpmoe.data import dataset, plain
    from vpmoe.megatron.start import parse_flags, run_pretrain, validate_flags
    from vpmoe.model.builder import model_provider
    from vpmoe.model.limits import limits_without_effect
    from vpmoe.optimizer.megatron import install as install_optimizer
    from vpmoe.tokenizer.megatron import install as install_tokenizer

    install_tokenizer()
    install_optimizer()
    args = parse_flags(_PROGRAM, flags, add_vpmoe_args)
    refuse_vpmoe_args(args)
    validate_flags(args, {})
    validate_vpmoe_args(args)
    if args.rank == 0:
        for limit in limits_without_effect(args):
            print(f"{_PROGRAM}: warning: {limit}", file=sys.stderr, flush=True)
    source = plain if args.synth_kd_data is None else dataset
    run_pretrain(
        _PROGRAM,
        args,
        source.train_valid_test_datasets_provider,
        forward_step,
        model_provider,
    )


def forward_step(
    data_iterator: Iterator[Any], model: Any, return_schedule_plan: bool = False
) -> tuple[Any, Callable[[Any], Any]]:
    """One micro-batch forward; Megatron's `forward_step_func`.

    Args:
        data_iterator: yields samples of the dataset; None on pipeline stages that read none.
        model: the model chunk of this pipeline stage.
        return_schedule_plan: Megatron's overlapped expert schedule, which vpMoE does not offer.

    Returns:
        The output of this stage and the function that turns the last stage's per-token losses
        [b, s] into Megatron's (loss, number of tokens, report).

    Raises:
        ValueError: a schedule plan is asked for (`--overlap-moe-expert-parallel-comm`).
    """
    if return_schedule_plan:
        raise ValueError("--overlap-moe-expert-parallel-comm is not supported by vpmoe")
    from megatron.training import get_args

    from vpmoe.data.batch import get_batch
    from vpmoe.data.loss import loss_function, loss_weights, span_weights
    from vpmoe.megatron.helpers import unwrap_model

    batch = get_batch(data_iterator)
    weights = None
    if unwrap_model(model).config.loss_kernel == "chunked":
        weights = loss_weights(batch, span_weights(get_args()))
    output = model(
        batch.tokens,
        batch.position_ids,
        None,
        labels=batch.labels,
        document_ids=batch.document_ids,
        loss_weights=weights,
    )
    return output, loss_function(batch)


@contextlib.contextmanager
def _determinism_restored() -> Iterator[None]:
    """Undoes what `--deterministic-mode` sets in torch for the whole process."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@contextlib.contextmanager
def _process_environment() -> Iterator[None]:
    """Makes a plain start a world of one, and leaves torchrun's environment alone."""
    added = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    if "RANK" not in os.environ:
        added |= {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",  # the system chooses, at the moment that it is listened on
        }
    added = {name: value for name, value in added.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


if __name__ == "__main__":
    sys.exit(main())
