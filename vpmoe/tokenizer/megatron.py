"""Makes Megatron's `build_tokenizer(args)` build the O200kHarmonyTokenizer."""

from __future__ import annotations

import argparse

from vpmoe.tokenizer.arguments import TOKENIZER_TYPE
from vpmoe.tokenizer.special import PADDED_VOCAB_SIZE
from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer


def install() -> None:
    """Lets Megatron's training build it for `--tokenizer-type`; idempotent."""
    from vpmoe.megatron.tokenizer import install_tokenizer

    install_tokenizer(TOKENIZER_TYPE, _build, O200kHarmonyTokenizer)


def _build(args: argparse.Namespace) -> O200kHarmonyTokenizer:
    if args.padded_vocab_size not in (None, PADDED_VOCAB_SIZE):
        raise ValueError(
            f"--padded-vocab-size {args.padded_vocab_size}: o200k Harmony's is locked to "
            f"{PADDED_VOCAB_SIZE}; leave it out"
        )
    args.padded_vocab_size = PADDED_VOCAB_SIZE
    return O200kHarmonyTokenizer(args.tokenizer_model)
