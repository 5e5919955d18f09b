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
        ((), {"mock_data": True}, "--mock-data"),
        ((), {"data_path": ["x"]}, "--data-path"),
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
    with pytest.raises(ValueError, match="--synth-kd-data DIR is required"):
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
