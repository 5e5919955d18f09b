"""The command line of `vpmoe pretrain`: Megatron's flags and vpMoE's, added in one place.

Megatron's parser closes some choices (`--tokenizer-type`, `--position-embedding-type`,
`--optimizer`). They are widened here, so that nothing in site-packages is edited.
"""

from __future__ import annotations

import argparse
import functools
import logging
import re
import warnings

from vpmoe.data.arguments import add_data_args, validate_data_args
from vpmoe.megatron.start import add_megatron_flags, widen_choices
from vpmoe.model.arguments import add_model_args, refuse_model_args, validate_model_args
from vpmoe.optimizer.arguments import (
    add_optimizer_args,
    refuse_optimizer_args,
    validate_optimizer_args,
)
from vpmoe.runtime import detect_lane
from vpmoe.tokenizer.arguments import add_tokenizer_args, validate_tokenizer_args

_WIDENED_CHOICES = (
    ("--tokenizer-type", "O200kHarmonyTokenizer"),
    ("--position-embedding-type", "grapem"),
    ("--optimizer", "normuon"),
)

_DESCRIPTION = (
    "Train. Flags are Megatron-LM's and vpMoE's; --config FILE, a preset such as "
    "configs/vpmoe-tiny.toml, puts its flags before them, so that those given here win."
)

# argparse fills `%(default)s` and the like into a help text; any other % is meant as a percentage.
_PERCENT = re.compile(r"%%|%\(\w+\)[a-z]|%")


def add_vpmoe_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds vpMoE's flags to Megatron's parser; Megatron's `extra_args_provider`."""
    for flag, choice in _WIDENED_CHOICES:
        widen_choices(parser, flag, choice)
    add_tokenizer_args(parser)
    add_data_args(parser)
    add_model_args(parser)
    add_optimizer_args(parser)
    escape_percentages(parser)
    parser.description = _DESCRIPTION
    return parser


@functools.cache
def training_parser() -> argparse.ArgumentParser:
    """Returns the parser of `vpmoe pretrain`: Megatron's, with vpMoE's flags.

    It raises `argparse.ArgumentError` where the command's own ends the process.
    """
    disabled = logging.root.manager.disable
    # What Megatron says of libraries that it does not find is the training's to print.
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), detect_lane().activate():
            parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
            return add_vpmoe_args(add_megatron_flags(parser))
    finally:
        logging.disable(disabled)


def escape_percentages(parser: argparse.ArgumentParser) -> None:
    """Lets argparse print help texts with a bare `%`, on which `--help` would fail.

    Some of Megatron's have one ("90% by default"). `%%` and `%(name)s` stay what they are.
    """
    for action in parser._actions:
        if isinstance(action.help, str):
            action.help = _PERCENT.sub(lambda m: "%%" if m[0] == "%" else m[0], action.help)


def refuse_vpmoe_args(args: argparse.Namespace) -> None:
    """Refuses what vpMoE never does, before Megatron checks its flags.

    Megatron's own checks ask for further flags, which vpMoE would then refuse
    (`--optimizer-cpu-offload` for `--use-precision-aware-optimizer`).

    Args:
        args: Megatron's and vpMoE's arguments, as they were given.

    Raises:
        ValueError: a flag that vpMoE has no use for; the message says what to do.
    """
    refuse_model_args(args)
    refuse_optimizer_args(args)


def validate_vpmoe_args(args: argparse.Namespace) -> None:
    """Checks vpMoE's flags together, after Megatron has checked its own.

    Args:
        args: Megatron's and vpMoE's arguments; derived ones are set.

    Raises:
        ValueError: a combination that vpMoE refuses; the message names the flags.
    """
    validate_tokenizer_args(args)
    validate_data_args(args)
    validate_model_args(args)
    validate_optimizer_args(args)
