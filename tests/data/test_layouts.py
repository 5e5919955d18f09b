"""Real runs: one loss and gradient however the global batch is cut over micro-batches and ranks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vpmoe.data.trace import planned_samples

STEPS, LENGTH = 3, 32
_MODEL = f"""
--num-layers 2 --hidden-size 8 --num-attention-heads 2 --ffn-hidden-size 16 --kv-channels 4
--seq-length {LENGTH} --max-position-embeddings {LENGTH} --normalization RMSNorm
--squared-relu --disable-bias-linear --untie-embeddings-and-output-weights --attention-dropout 0
--hidden-dropout 0 --window-size 16 --window-attn-skip-freq 2 --position-embedding-type grapem
--tokenizer-type O200kHarmonyTokenizer --reset-position-ids --reset-attention-mask
--kd-span-weight-reasoning 0.5 --kd-span-weight-final 2 --global-batch-size 4 --seed 3
--train-iters {STEPS} --lr-decay-iters {STEPS} --eval-interval 3 --eval-iters 1
"""
# Ranks; micro-batches and data-parallel ranks of a step; flags.
LAYOUTS: dict[str, tuple[int, int, int, list[str]]] = {
    "1 x 4": (1, 1, 1, ["--micro-batch-size", "4"]),
    "2 x 2": (1, 2, 1, ["--micro-batch-size", "2"]),
    "4 x 1": (1, 4, 1, ["--micro-batch-size", "1"]),
    "dp": (2, 2, 2, ["--micro-batch-size", "1"]),
    "dp per token": (2, 1, 2, ["--micro-batch-size", "2", "--calculate-per-token-loss"]),
    "tp": (2, 2, 1, ["--micro-batch-size", "2", "--tensor-model-parallel-size", "2"]),
    "pp": (2, 4, 1, ["--micro-batch-size", "1", "--pipeline-model-parallel-size", "2"]),
}
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="runs on the CPU lane")


@pytest.fixture(scope="module")
def runs(
    sample_dataset: Path, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What every rank of every layout recorded, and the logs of a run on damaged data."""
    folder = tmp_path_factory.mktemp("layouts")
    shutil.copytree(sample_dataset, folder / "damaged data")
    path = folder / "damaged data" / "train" / "shard_03_tokens.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)
    plan = [
        _run(folder / name, ranks, [*flags, "--synth-kd-data", str(sample_dataset)], vocabulary)
        for name, (ranks, _, _, flags) in LAYOUTS.items()
    ]
    flags = [*LAYOUTS["dp"][3], "--synth-kd-data", str(folder / "damaged data")]
    plan.append(_run(folder / "damaged", 2, flags, vocabulary))
    (folder / "plan.json").write_text(json.dumps(plan))
    script = Path(__file__).with_name("layout_runs.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(folder / "plan.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[str, Any] = {}
    for name, (ranks, *_) in LAYOUTS.items():
        files = [folder / name / f"rank{rank}.json" for rank in range(ranks)]
        logs = [path.with_suffix(".log") for path in files]
        assert all(file.exists() for file in files), done.stderr[-2000:] + "".join(
            log.read_text()[-3000:] for log in logs if log.exists()
        )
        found[name] = [json.loads(file.read_text()) for file in files]
    found["damaged"] = [(folder / "damaged" / f"rank{rank}.log").read_text() for rank in (0, 1)]
    return found


def _run(out: Path, ranks: int, flags: list[str], vocabulary: Path) -> dict[str, Any]:
    common = [*_MODEL.split(), "--tokenizer-model", str(vocabulary)]
    return {"out": str(out), "ranks": ranks, "flags": [*common, *flags]}


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "1 x 4"])
def test_loss_and_gradient_do_not_depend_on_the_layout(runs: dict[str, Any], name: str) -> None:
    expected = runs["1 x 4"][0]["steps"]
    actual = runs[name][-1]["steps"]  # with pipeline stages the last one has the losses
    assert len(actual) == STEPS
    for one, other in zip(expected, actual, strict=True):
        assert one.keys() == other.keys() >= {"lm loss", "reasoning loss", "final loss"}
        for metric, value in one.items():
            assert other[metric] == pytest.approx(value, rel=1e-5), metric


def test_it_learns(runs: dict[str, Any]) -> None:
    losses = [step["lm loss"] for step in runs["1 x 4"][0]["steps"]]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_every_rank_gets_the_planned_samples(runs: dict[str, Any], name: str) -> None:
    ranks, parts, data_ranks, _ = LAYOUTS[name]
    plan = planned_samples(
        steps=STEPS,
        micro_batches=parts,
        micro_batch_size=4 // parts // data_ranks,
        data_parallel_size=data_ranks,
    )
    for rank in range(ranks):
        mine = [part for step in plan for part in step[rank % data_ranks]]
        assert runs[name][rank]["samples"] == mine


def test_damage_found_by_one_rank_stops_all_before_training(runs: dict[str, Any]) -> None:
    """Shard 3 of 4 and then the valid shard: rank 1 verifies it, rank 0 hears of it."""
    zero, one = runs["damaged"]
    assert "shard_03_tokens.bin: document 0" in one
    assert "CorruptDatasetError" in one
    assert "iteration" not in zero.split("building SYNTH")[1]
