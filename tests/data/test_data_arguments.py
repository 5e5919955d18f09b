"""The data flags, refused with their names."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from vpmoe.data.arguments import add_data_args, validate_data_args
from vpmoe.data.build import build_dataset


def _args(dataset: Path | None, *flags: str, **more: Any) -> argparse.Namespace:
    words = [] if dataset is None else ["--synth-kd-data", str(dataset)]
    args = add_data_args(argparse.ArgumentParser()).parse_args([*words, *flags])
    given = {
        "split": None,
        "data_path": None,
        "data_args_path": None,
        "train_data_path": None,
        "valid_data_path": None,
        "test_data_path": None,
        "per_split_data_args_path": None,
        "mock_data": False,
        "sft": False,
        "fim_data": False,
        "legacy_tokenizer": False,
        "tokenizer_type": "O200kHarmonyTokenizer",
        "multiple_validation_sets": False,
        "dataloader_type": "single",
        "hybrid_context_parallel": False,
        "full_validation": False,
        "eval_iters": 10,
    }
    return argparse.Namespace(**(vars(args) | given | more))


def test_both_weights_are_1_and_evaluation_stays(sample_dataset: Path) -> None:
    args = _args(sample_dataset)
    validate_data_args(args)
    assert (args.kd_span_weight_reasoning, args.kd_span_weight_final) == (1.0, 1.0)
    assert args.eval_iters == 10


@pytest.mark.parametrize(
    ("flags", "more", "words"),
    [
        (("--kd-span-weight-final", "-1"), {}, "--kd-span-weight-final -1.0"),
        (("--kd-span-weight-reasoning", "nan"), {}, "--kd-span-weight-reasoning nan"),
        (
            ("--kd-span-weight-final", "0", "--kd-span-weight-reasoning", "0"),
            {},
            "nothing to train on",
        ),
        ((), {"mock_data": True}, "--synth-kd-data and --mock-data: a run has one source"),
        ((), {"data_path": ["x"]}, "--synth-kd-data and --data-path: a run has one source"),
        ((), {"data_args_path": "x"}, "--synth-kd-data and --data-args-path"),
        ((), {"legacy_tokenizer": True, "tokenizer_type": "X"}, "holds o200k Harmony ids"),
        ((), {"multiple_validation_sets": True}, "--multiple-validation-sets"),
        ((), {"dataloader_type": "external"}, "--dataloader-type external"),
        ((), {"hybrid_context_parallel": True}, "--hybrid-context-parallel"),
    ],
)
def test_refusals_name_the_flag(
    sample_dataset: Path, flags: tuple[str, ...], more: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        validate_data_args(_args(sample_dataset, *flags, **more))


def test_a_dataset_is_required(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no data: --synth-kd-data DIR"):
        validate_data_args(_args(None))
    with pytest.raises(ValueError, match="no dataset"):
        validate_data_args(_args(tmp_path))


@pytest.mark.parametrize("fraction", ["0", "1"])
def test_splits_without_documents(
    conversations: Path, vocabulary: Path, tmp_path: Path, fraction: str
) -> None:
    build_dataset([conversations], tmp_path, valid_fraction=fraction, vocabulary=vocabulary)
    args = _args(tmp_path)
    if fraction == "1":
        with pytest.raises(ValueError, match="no train documents"):
            validate_data_args(args)
        return
    validate_data_args(args)
    assert args.eval_iters == 0
    with pytest.raises(ValueError, match="--full-validation"):
        validate_data_args(_args(tmp_path, full_validation=True))


def test_plain_data_is_accepted(tmp_path: Path) -> None:
    """With its files there, alone and blended by weights, for all splits and for each."""
    for name in ("a.idx", "a.bin", "b_text.idx", "b_text.bin"):
        (tmp_path / name).touch()
    a, b = str(tmp_path / "a"), str(tmp_path / "b_text")
    (tmp_path / "blend.txt").write_text(f"0.3 {a} 0.7 {b}")
    for more, evaluations in (
        ({"mock_data": True}, 10),
        ({"mock_data": True, "legacy_tokenizer": True}, 10),
        ({"data_path": [a], "split": "90,10"}, 10),
        ({"data_path": [a], "split": "100,0,0"}, 0),
        ({"data_path": ["0.3", a, "0.7", b], "split": "969, 30, 1"}, 10),
        ({"data_args_path": str(tmp_path / "blend.txt"), "split": "1,1"}, 10),
        ({"train_data_path": [a], "valid_data_path": [b]}, 10),
        ({"train_data_path": [a]}, 0),
    ):
        args = _args(None, **more)
        validate_data_args(args)
        assert args.eval_iters == evaluations


def test_splits_of_plain_data(tmp_path: Path) -> None:
    """That leave nothing to train on, nothing for a full validation, or are missing."""
    for name in ("a.idx", "a.bin"):
        (tmp_path / name).touch()
    a = [str(tmp_path / "a")]
    for more, words in (
        ({"data_path": a, "split": "0,100,0"}, "--data-path: leaves nothing to train on"),
        ({"valid_data_path": a}, "--valid-data-path: leaves nothing to train on"),
        ({"data_path": a}, "--data-path: needs --split"),
        ({"train_data_path": a, "full_validation": True}, "--full-validation: --train-data-path"),
    ):
        with pytest.raises(ValueError, match=words):
            validate_data_args(_args(None, **more))


@pytest.mark.parametrize(
    ("flags", "more", "words"),
    [
        ((), {"data_path": ["none"]}, "--data-path none: there is no file none.idx"),
        ((), {"data_path": ["none.bin"]}, "no file none.bin.idx; give the path without .bin"),
        ((), {"valid_data_path": ["1", "none"]}, "--valid-data-path none: there is no file"),
        ((), {"mock_data": True, "data_path": ["x"]}, "--mock-data and --data-path"),
        (("--kd-span-weight-final", "2"), {"mock_data": True}, "--mock-data has no spans"),
        (("--kd-span-weight-final", "2"), {"data_path": ["x"]}, "--data-path has no spans"),
        ((), {"mock_data": True, "sft": True}, "--sft"),
        ((), {"data_path": ["x"], "fim_data": True}, "--fim-data"),
    ],
)
def test_refusals_of_plain_data(flags: tuple[str, ...], more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        validate_data_args(_args(None, *flags, **more))
