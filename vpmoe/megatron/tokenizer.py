"""A tokenizer in Megatron's closed list of them."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

from vpmoe.megatron.contract import Contract, Exists, Reads, Takes

TOKENIZERS = Contract(
    "tokenizers",
    "Megatron's list of tokenizers is closed, and its metadata for custom classes is broken for "
    "JSON (it writes `class_path` and reads `tokenizer_class_path`); vpMoE replaces "
    "`build_tokenizer` where training looks it up.",
    "See how this version builds a tokenizer of `--tokenizer-type`; a registry of its own would "
    "make the replacement needless.",
    (
        Takes("megatron.core.tokenizers.utils.build_tokenizer:build_tokenizer", ("args",)),
        Reads("megatron.training.global_vars:_build_tokenizer", names=("build_tokenizer",)),
        Exists("megatron.core.tokenizers:MegatronTokenizerBase"),
    ),
)

CONTRACTS = (TOKENIZERS,)


def install_tokenizer(
    kind: str, build: Callable[[argparse.Namespace], Any], tokenizer: type[Any]
) -> None:
    """Makes Megatron's training build a tokenizer of its own; idempotent.

    Args:
        kind: the `--tokenizer-type`.
        build: builds it from Megatron's arguments.
        tokenizer: its class, which becomes one of Megatron's.
    """
    from megatron.core.tokenizers import MegatronTokenizerBase
    from megatron.core.tokenizers.utils import build_tokenizer as library
    from megatron.training import global_vars

    if kind in getattr(library.build_tokenizer, "further_kinds", ()):
        return
    TOKENIZERS.check()
    MegatronTokenizerBase.register(tokenizer)
    original = library.build_tokenizer

    @functools.wraps(original)
    def build_tokenizer(args: argparse.Namespace, **kwargs: Any) -> Any:
        return build(args) if args.tokenizer_type == kind else original(args, **kwargs)

    build_tokenizer.further_kinds = (kind,)  # type: ignore[attr-defined]
    library.build_tokenizer = build_tokenizer
    global_vars.build_tokenizer = build_tokenizer
