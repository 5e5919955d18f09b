"""Flags of the tokenizer, beside Megatron's `--tokenizer-type` and `--tokenizer-model`."""

from __future__ import annotations

import argparse

from vpmoe.tokenizer.asset import ensure_asset
from vpmoe.tokenizer.special import PADDED_VOCAB_SIZE

TOKENIZER_TYPE = "O200kHarmonyTokenizer"


def add_tokenizer_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds vpMoE's tokenizer flags to Megatron's parser."""
    group = parser.add_argument_group(title="vpMoE tokenizer")
    group.add_argument(
        "--legacy-tokenizer",
        action="store_true",
        help="Let Megatron build the --tokenizer-type, any of its own, and pad its vocabulary; for "
        "--data-path and --mock-data. Off: vpMoE's own data and checkpoints hold o200k Harmony "
        "ids, which mean nothing to another tokenizer.",
    )
    return parser


def validate_tokenizer_args(args: argparse.Namespace) -> None:
    """Locks the vocabulary: o200k Harmony of 201088 ids, fixed before Megatron would pad it.

    Installs the vocabulary when it is missing. Under --legacy-tokenizer tokenizer and vocabulary
    are Megatron's.

    Args:
        args: Megatron's and vpMoE's arguments; vocabulary size and file are set in them.

    Raises:
        ValueError: another tokenizer without --legacy-tokenizer or none with it, another
            vocabulary size, a tensor-parallel size that does not divide it, or a bad vocabulary
            file.
    """
    if args.legacy_tokenizer:
        if args.tokenizer_type in (None, TOKENIZER_TYPE):
            raise ValueError(
                "--legacy-tokenizer: Megatron builds other tokenizers; name one with "
                f"--tokenizer-type, or leave it out to train with {TOKENIZER_TYPE}"
            )
        return
    if args.tokenizer_type != TOKENIZER_TYPE:
        raise ValueError(
            f"--tokenizer-type {args.tokenizer_type}: vpMoE trains with {TOKENIZER_TYPE}, whose "
            "ids its data and checkpoints hold; --legacy-tokenizer lets Megatron build another"
        )
    if args.padded_vocab_size not in (None, PADDED_VOCAB_SIZE):
        raise ValueError(
            f"--padded-vocab-size {args.padded_vocab_size}: o200k Harmony's is locked to "
            f"{PADDED_VOCAB_SIZE}; leave it out"
        )
    if args.vocab_size not in (None, PADDED_VOCAB_SIZE):
        raise ValueError(
            f"--vocab-size {args.vocab_size}: o200k Harmony's is locked to "
            f"{PADDED_VOCAB_SIZE}; leave it out"
        )
    if PADDED_VOCAB_SIZE % args.tensor_model_parallel_size:
        raise ValueError(
            f"--tensor-model-parallel-size {args.tensor_model_parallel_size} does not divide the "
            f"vocabulary {PADDED_VOCAB_SIZE} = 2^7 * 1571; use a power of 2 of at most 128"
        )
    # Megatron pads to a multiple of 128 * TP (201,216 at TP=2) unless the size is set already.
    args.padded_vocab_size = PADDED_VOCAB_SIZE
    args.tokenizer_model = str(ensure_asset(args.tokenizer_model))
