"""The training entry on mock data and Megatron's token files, with Megatron's tokenizers too."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="pins the CPU lane's numbers")

EOD = 199_999
LEGACY = ("--legacy-tokenizer", "--tokenizer-type", "NullTokenizer", "--vocab-size", "500")


def token_file(prefix: Path) -> str:
    """Documents of o200k Harmony ids, as Megatron's preprocessing writes them."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    generator = np.random.default_rng(0)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for length in (3, 50, 20, 70, 11, 40, 33, 64):
        document = [*generator.integers(0, 1000, length), EOD]
        builder.add_document(np.array(document), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


@pytest.fixture(scope="module")
def runs(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, warm_runs: Callable[..., Any]
) -> dict[str, Any]:
    """Every run of this file but the script's, made from one warm process."""
    folder = tmp_path_factory.mktemp("plain")
    tiny = ["--config", str(repository / "configs/vpmoe-tiny.toml"), "--num-workers", "0"]
    files = ["--data-path", token_file(folder / "tokens"), "--split", "100,0,0"]
    foreign = [*files, *LEGACY, "--train-iters", "1"]
    flags = {
        "mock": ["--mock-data", "--train-iters", "6", "--eval-iters", "0"],
        "files": [*files, "--train-iters", "6"],
        "legacy": ["--mock-data", *LEGACY, "--train-iters", "3", "--eval-iters", "1"],
        "limits": [
            *("--mock-data", *LEGACY, "--train-iters", "1", "--eval-iters", "0"),
            *("--moe-router-num-groups", "4", "--moe-router-group-topk", "2"),
        ],
        "foreign": foreign,
        "other tokenizer": ["--mock-data", *LEGACY[1:], "--train-iters", "1"],
    }
    found, log = warm_runs(folder, {name: tiny + more for name, more in flags.items()})
    return {**found, "log": log}


@pytest.mark.parametrize(
    ("name", "steps", "vocabulary"),
    [("mock", 6, 201_088), ("files", 6, 201_088), ("legacy", 3, 512)],
)
def test_it_trains_and_loss_falls(
    runs: dict[str, Any], name: str, steps: int, vocabulary: int
) -> None:
    run = runs[name]
    assert (run["code"], run["error"]) == (0, None), runs["log"][-4000:]
    losses = [step["lm_loss"] for step in run["curve"]]
    assert len(losses) == steps
    assert losses[0] == pytest.approx(math.log(vocabulary), abs=0.2)
    assert losses[-1] < losses[0]


def test_data_of_a_foreign_vocabulary_is_refused(runs: dict[str, Any]) -> None:
    assert "outside the vocabulary 0..511" in runs["foreign"]["error"]


def test_other_tokenizers_are_asked_for_by_name(runs: dict[str, Any]) -> None:
    assert "--legacy-tokenizer lets Megatron build another" in runs["other tokenizer"]["error"]


def test_a_limit_without_effect_is_named_once(runs: dict[str, Any]) -> None:
    """Of all runs here, in the one that has it."""
    warnings = [line for line in runs["log"].splitlines() if "vpmoe pretrain: warning:" in line]
    assert len(warnings) == 1
    assert "--moe-router-group-topk 2: a group is scored by its best expert" in warnings[0]
    assert runs["limits"]["code"] == 0


def test_the_script_of_megatrons_name_trains(repository: Path) -> None:
    words = ["--config", "configs/vpmoe-tiny.toml", "--mock-data", *LEGACY]
    words += ["--train-iters", "2", "--eval-iters", "0", "--num-workers", "0"]
    done = subprocess.run(
        [sys.executable, "examples/pretrain_gpt.py", *words],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "iteration        2/       2" in done.stdout
