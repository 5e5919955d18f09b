"""Flags: the vocabulary is locked before Megatron would pad it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from vpmoe.tokenizer.arguments import add_tokenizer_args, validate_tokenizer_args


def _args(vocabulary: Path, **changed: Any) -> argparse.Namespace:
    values = {
        "tokenizer_type": "O200kHarmonyTokenizer",
        "tokenizer_model": str(vocabulary),
        "legacy_tokenizer": False,
        "padded_vocab_size": None,
        "vocab_size": None,
        "tensor_model_parallel_size": 1,
    }
    return argparse.Namespace(**values | changed)


@pytest.mark.parametrize("tensor_parallel", [1, 2, 64, 128])
def test_the_padded_size_is_set_whatever_the_tensor_parallel_size(
    vocabulary: Path, tensor_parallel: int
) -> None:
    args = _args(vocabulary, tensor_model_parallel_size=tensor_parallel)
    validate_tokenizer_args(args)
    assert args.padded_vocab_size == 201_088


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"padded_vocab_size": 201_216}, "201216.*locked to 201088"),
        ({"vocab_size": 200_019}, "200019.*locked"),
        ({"tensor_model_parallel_size": 3}, "3 does not divide"),
        ({"tensor_model_parallel_size": 256}, "256 does not divide"),
        ({"tokenizer_type": "NullTokenizer"}, "NullTokenizer.*O200kHarmonyTokenizer"),
        ({"legacy_tokenizer": True}, "--legacy-tokenizer: Megatron builds other tokenizers"),
        ({"legacy_tokenizer": True, "tokenizer_type": None}, "name one with --tokenizer-type"),
        ({"tokenizer_type": "GPT2BPETokenizer"}, "--legacy-tokenizer lets Megatron"),
    ],
)
def test_anything_else_is_refused(vocabulary: Path, changed: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        validate_tokenizer_args(_args(vocabulary, **changed))


def test_a_missing_vocabulary_is_installed(vocabulary: Path, tmp_path: Path) -> None:
    args = _args(vocabulary, tokenizer_model=str(tmp_path / "new.tiktoken"))
    validate_tokenizer_args(args)
    assert Path(args.tokenizer_model).read_bytes() == vocabulary.read_bytes()


def test_legacy_tokenizer_is_off_and_says_what_it_does() -> None:
    parser = add_tokenizer_args(argparse.ArgumentParser())
    assert parser.parse_args([]).legacy_tokenizer is False
    assert "--legacy-tokenizer" in parser.format_help()
    assert "for --data-path and --mock-data" in " ".join(parser.format_help().split())


def test_legacy_tokenizer_leaves_the_vocabulary_to_megatron(vocabulary: Path) -> None:
    args = _args(vocabulary, legacy_tokenizer=True, tokenizer_type="NullTokenizer", vocab_size=500)
    validate_tokenizer_args(args)
    assert (args.padded_vocab_size, args.vocab_size) == (None, 500)


def test_the_variable_names_the_vocabulary(
    vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere.tiktoken"
    elsewhere.write_bytes(vocabulary.read_bytes())
    monkeypatch.setenv("O200K_HARMONY_VOCAB_PATH", str(elsewhere))
    args = _args(vocabulary, tokenizer_model=None)
    validate_tokenizer_args(args)
    assert Path(args.tokenizer_model) == elsewhere
