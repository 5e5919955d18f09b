"""Megatron's `build_tokenizer` builds ours, and its own otherwise."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from vpmoe.tokenizer import O200kHarmonyTokenizer


def test_build_tokenizer(vocabulary: Path) -> None:
    from megatron.core.tokenizers import MegatronTokenizerBase
    from megatron.core.tokenizers.utils import build_tokenizer as library
    from megatron.training import global_vars

    from vpmoe.tokenizer.megatron import install

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "build_tokenizer", library.build_tokenizer)
        patch.setattr(global_vars, "build_tokenizer", global_vars.build_tokenizer)
        install()
        installed = global_vars.build_tokenizer
        install()
        assert global_vars.build_tokenizer is installed is library.build_tokenizer
        args = argparse.Namespace(
            tokenizer_type="O200kHarmonyTokenizer",
            tokenizer_model=str(vocabulary),
            padded_vocab_size=None,
        )
        tokenizer = installed(args)
        assert isinstance(tokenizer, O200kHarmonyTokenizer)
        assert isinstance(tokenizer, MegatronTokenizerBase)
        assert args.padded_vocab_size == 201_088
        args.padded_vocab_size = 201_216
        with pytest.raises(ValueError, match="201216"):
            installed(args)
        other = argparse.Namespace(
            tokenizer_type="NullTokenizer",
            vocab_size=500,
            pad_vocab_size=False,
            rank=0,
        )
        assert installed(other).vocab_size in (500, 501)
