"""Megatron's command line and its `pretrain()`, as vpMoE starts them."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable
from typing import Any

from vpmoe.megatron.contract import Contract, Takes
from vpmoe.runtime.patches import replaced

COMMAND_LINE = Contract(
    "command line",
    "vpMoE lets Megatron parse and check the flags, adds its own, and puts them into Megatron's "
    "global state.",
    "Follow Megatron's own `pretrain_gpt.py` of this version in vpmoe/megatron/start.py.",
    (
        Takes("megatron.training.arguments:parse_args", ("extra_args_provider",)),
        Takes("megatron.training.arguments:add_megatron_arguments", ("parser",)),
        Takes("megatron.training.arguments:validate_args", ("args", "defaults")),
        Takes("megatron.training.global_vars:set_global_variables", ("args",)),
        Takes(
            "megatron.training.argument_utils:core_transformer_config_from_args",
            ("args", "config_class"),
        ),
    ),
)

LOOP = Contract(
    "training loop",
    "vpMoE runs Megatron's `pretrain()` with its own providers, and tears its global state down "
    "after.",
    "Follow Megatron's own `pretrain_gpt.py` of this version in vpmoe/megatron/start.py.",
    (
        Takes(
            "megatron.training.training:pretrain",
            keywords=(
                "cfg_container",
                "train_valid_test_dataset_provider",
                "model_type",
                "forward_step_func",
                "model_provider",
            ),
        ),
        Takes("megatron.training.argument_utils:pretrain_cfg_container_from_args", ("args",)),
        Takes("megatron.training.training:destroy_global_state"),
    ),
)

CONTRACTS = (COMMAND_LINE, LOOP)


def add_megatron_flags(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds all of Megatron's flags to a parser, and returns it."""
    COMMAND_LINE.check()
    from megatron.training.arguments import add_megatron_arguments

    found: argparse.ArgumentParser = add_megatron_arguments(parser)
    return found


def parse_flags(
    program: str,
    flags: list[str],
    add_flags: Callable[[argparse.ArgumentParser], argparse.ArgumentParser],
) -> argparse.Namespace:
    """Parses flags with Megatron's parser.

    Args:
        program: what the parser calls itself in its messages.
        flags: without the program's name.
        add_flags: adds vpMoE's to the parser.

    Returns:
        Megatron's and vpMoE's arguments, not validated.

    Raises:
        SystemExit: the parser refused one.
    """
    COMMAND_LINE.check()
    from megatron.training.arguments import parse_args

    with replaced(sys, "argv", [program, *flags]):
        args: argparse.Namespace = parse_args(add_flags)
    return args


def validate_flags(args: argparse.Namespace, defaults: dict[str, Any]) -> None:
    """Has Megatron check its flags together, and fill in what follows from them.

    Args:
        args: parsed flags; changed in place.
        defaults: of flags that were not given.

    Raises:
        ValueError: Megatron refuses them without a message; this one names what it asserts.
        AssertionError: Megatron refuses them with one.
    """
    COMMAND_LINE.check()
    from megatron.training.arguments import validate_args

    try:
        validate_args(args, defaults)
    except AssertionError as error:
        if error.args:
            raise
        # Some of Megatron's assertions have no message: what is asserted names the flag.
        asserted = traceback.extract_tb(error.__traceback__)[-1].line
        raise ValueError(f"Megatron refuses the flags: it has `{asserted}`") from error


def widen_choices(parser: argparse.ArgumentParser, flag: str, choice: str) -> None:
    """Adds a choice to one of the closed ones of Megatron's parser.

    Args:
        parser: Megatron's.
        flag: whose choices are widened.
        choice: what it accepts from now on.

    Raises:
        MegatronChangedError: the flag has no closed choice.
    """
    action = parser._option_string_actions.get(flag)
    if action is None or action.choices is None:
        raise COMMAND_LINE.broken(
            f"megatron-core no longer has a closed choice {flag}, so its widening by {choice} "
            "has nothing to widen"
        )
    if choice not in action.choices:
        action.choices = (*action.choices, choice)


def config_from_flags(args: argparse.Namespace, kind: type[Any]) -> Any:
    """A `TransformerConfig` of the class `kind` from validated flags."""
    COMMAND_LINE.check()
    from megatron.training.argument_utils import core_transformer_config_from_args

    return core_transformer_config_from_args(args, kind)


def run_pretrain(
    program: str,
    args: argparse.Namespace,
    datasets: Callable[..., Any],
    forward_step: Callable[..., Any],
    model_provider: Callable[..., Any],
) -> None:
    """Runs Megatron's loop on validated flags, and leaves no global state behind.

    Args:
        program: what Megatron finds as the program's name.
        args: validated flags.
        datasets: Megatron's `train_valid_test_dataset_provider`.
        forward_step: Megatron's `forward_step_func`.
        model_provider: Megatron's.
    """
    LOOP.check()
    import torch
    from megatron.core.enums import ModelType
    from megatron.training import pretrain
    from megatron.training.argument_utils import pretrain_cfg_container_from_args
    from megatron.training.global_vars import set_global_variables
    from megatron.training.training import destroy_global_state

    try:
        set_global_variables(args)
        # Megatron's fault tolerance parses the command line again, without vpMoE's choices.
        with replaced(sys, "argv", [program]):
            # By name: their order changed in 0.19.
            pretrain(
                cfg_container=pretrain_cfg_container_from_args(args),
                train_valid_test_dataset_provider=datasets,
                model_type=ModelType.encoder_or_decoder,
                forward_step_func=forward_step,
                model_provider=model_provider,
            )
    finally:
        destroy_global_state()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
