"""A model of any size without memory: built on torch's meta device, from a training's flags."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from vpmoe.megatron.repairs import skip_helper_build
from vpmoe.runtime import detect_lane


@contextlib.contextmanager
def meta_model(
    flags: Sequence[str], rank: int = 0, ranks: int = 1
) -> Iterator[tuple[argparse.Namespace, Any]]:
    """Builds the model that the flags describe, as one rank holds it.

    Inside the context there are a lane and process groups. Other ranks are only counted: nothing
    can be sent to them.

    Args:
        flags: of `vpmoe pretrain`, such as a preset's `to_flags()`.
        rank: whose part of the model is built.
        ranks: how many there are, as many as the flags for parallel sizes ask for or a multiple.

    Yields:
        Megatron's validated arguments, and the `VpmoeModel` on the meta device.

    Raises:
        ValueError: flags that vpMoE refuses.
        RuntimeError: the process has joined a process group.
    """
    if torch.distributed.is_initialized():
        raise RuntimeError("a model on the meta device needs a process without a process group")
    lane = detect_lane()
    environment = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    # Megatron asks for it, which orders the kernels of a GPU, wherever there are several ranks.
    environment["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    # Megatron prints every argument, and logs its warnings to stdout.
    quiet = contextlib.redirect_stdout(io.StringIO())
    with lane.activate(), skip_helper_build(), _environment(environment):
        from megatron.core import parallel_state

        with quiet, _unlogged():
            args = checked_arguments([*lane.default_flags, *flags])
        _join(rank, ranks)
        try:
            parallel_state.initialize_model_parallel(
                args.tensor_model_parallel_size,
                args.pipeline_model_parallel_size,
                expert_model_parallel_size=args.expert_model_parallel_size,
                expert_tensor_parallel_size=args.expert_tensor_parallel_size,
                create_gloo_process_groups=False,
            )
            with quiet, _unlogged():
                model = _build(args)
            yield args, model
        finally:
            parallel_state.destroy_model_parallel()
            torch.distributed.destroy_process_group()


def _join(rank: int, ranks: int) -> None:
    """Makes this process a rank, which waits for no other one."""
    if ranks == 1:
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        return
    # torch's own backend for planning without the other ranks.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)


def checked_arguments(flags: list[str]) -> argparse.Namespace:
    """Takes flags through the parser and the checks of `vpmoe pretrain`, but for those of data.

    Args:
        flags: of `vpmoe pretrain`.

    Returns:
        Megatron's validated arguments.

    Raises:
        ValueError: flags that vpMoE refuses.
        AssertionError: flags that Megatron refuses with a message of its own.
    """
    from vpmoe.arguments import add_vpmoe_args, refuse_vpmoe_args
    from vpmoe.megatron.start import parse_flags, validate_flags
    from vpmoe.model.arguments import validate_model_args
    from vpmoe.optimizer.arguments import validate_optimizer_args

    args = parse_flags("vpmoe params", flags, add_vpmoe_args)
    refuse_vpmoe_args(args)
    validate_flags(args, {"eval_interval": 1})
    # Data is not needed, so its flags are not checked.
    validate_model_args(args)
    validate_optimizer_args(args)
    return args


def _build(args: argparse.Namespace) -> Any:
    from vpmoe.model.builder import build_model, config_from_args

    with torch.device("meta"):
        return build_model(
            config_from_args(args),
            vocab_size=args.padded_vocab_size,
            max_sequence_length=args.max_position_embeddings,
            seed=args.seed,
        )


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
