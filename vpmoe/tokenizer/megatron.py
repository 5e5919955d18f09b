"""Makes Megatron's `build_tokenizer(args)` build the O200kHarmonyTokenizer.

Megatron 0.19.2's list of tokenizers is closed, and its metadata for custom classes is broken for
JSON (it writes `class_path` and reads `tokenizer_class_path`).
"""

from __future__ import annotations

import argparse
from typing import Any

from vpmoe.tokenizer.arguments import TOKENIZER_TYPE
from vpmoe.tokenizer.special import PADDED_VOCAB_SIZE
from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer


def install() -> None:
    """Replaces `build_tokenizer` where Megatron's training looks it up; idempotent."""
    from megatron.core.tokenizers import MegatronTokenizerBase
    from megatron.core.tokenizers.utils import build_tokenizer as library
    from megatron.training import global_vars

    if getattr(library.build_tokenizer, "builds_o200k_harmony", False):
        return
    MegatronTokenizerBase.register(O200kHarmonyTokenizer)
    original = library.build_tokenizer

    def build_tokenizer(args: argparse.Namespace, **kwargs: Any) -> Any:
        if args.tokenizer_type != TOKENIZER_TYPE:
            return original(args, **kwargs)
        if args.padded_vocab_size not in (None, PADDED_VOCAB_SIZE):
            raise ValueError(
                f"--padded-vocab-size {args.padded_vocab_size}: o200k Harmony's is locked to "
                f"{PADDED_VOCAB_SIZE}; leave it out"
            )
        args.padded_vocab_size = PADDED_VOCAB_SIZE
        return O200kHarmonyTokenizer(args.tokenizer_model)

    build_tokenizer.builds_o200k_harmony = True  # type: ignore[attr-defined]
    library.build_tokenizer = build_tokenizer
    global_vars.build_tokenizer = build_tokenizer
