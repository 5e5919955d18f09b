"""Real runs over gloo: resume, reshard, and two tensor-parallel ranks against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

_FLAGS = """
--num-layers 2 --hidden-size 32 --num-attention-heads 4 --group-query-attention
--num-query-groups 2 --kv-channels 8 --ffn-hidden-size 16 --seq-length 24
--max-position-embeddings 24 --micro-batch-size 2 --global-batch-size 4 --normalization RMSNorm
--qk-layernorm --squared-relu --disable-bias-linear --untie-embeddings-and-output-weights
--attention-dropout 0 --hidden-dropout 0 --vocab-size 255 --window-size 6
--window-attn-skip-freq 2 --no-rope-freq 2 --position-embedding-type grapem --grape-a --use-tpa
--tpa-rank 2 --tpa-q-rank 3 --softmax-type learnable --seed 7 --lr-decay-iters 20
--num-experts 4 --moe-layer-freq ([0]+[1]*1) --moe-ffn-hidden-size 8
--moe-shared-expert-intermediate-size 12 --moe-router-topk 2 --moe-router-score-function sigmoid
--moe-router-load-balancing-type seq_aux_loss --moe-aux-loss-coeff 1e-4 --moe-router-dtype fp32
--optimizer normuon --normuon-aux-lr 3e-3 --weight-decay 0.1
"""
MODEL = _FLAGS.split()
TP = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
HALF, ALL = 10, 20


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if torch.cuda.is_available():
        pytest.skip("the CPU lane is for machines without CUDA")
    folder = tmp_path_factory.mktemp("normuon")
    plan: list[dict[str, Any]] = []

    def add(name: str, ranks: int, steps: int, *flags: str) -> None:
        words = [*MODEL, *flags, "--train-iters", str(steps)]
        plan.append({"out": str(folder / name), "ranks": ranks, "flags": words})

    def save(name: str) -> list[str]:
        return ["--save", str(folder / name / "checkpoint"), "--save-interval", str(HALF)]

    def load(name: str) -> list[str]:
        checkpoint = str(folder / name / "checkpoint")
        return [
            *["--load", checkpoint, "--ckpt-step", str(HALF)],
            "--override-opt_param-scheduler",
        ]

    add("one", 1, ALL, *save("one"))
    add("resumed", 1, ALL, *load("one"))
    add("grouped", 1, HALF, "--expert-kernel", "grouped")
    add("dp", 2, HALF)
    add("tp", 2, HALF, *TP, *save("tp"))
    add("tp-distributed", 2, HALF, *TP, "--normuon-tp-mode", "distributed")
    add("tp-blockwise", 2, HALF, *TP, "--normuon-tp-mode", "blockwise")
    add("ep", 2, HALF, "--expert-model-parallel-size", "2")
    add("pp", 2, HALF, "--pipeline-model-parallel-size", "2")
    add("ep-grouped", 2, HALF, "--expert-model-parallel-size", "2", "--expert-kernel", "grouped")
    add("one-to-tp", 2, HALF + 2, *TP, *load("one"), "--no-load-rng")
    add("tp-to-one", 1, HALF + 2, *load("tp"), "--no-load-rng")
    add("refused", 1, 1, "--use-distributed-optimizer")
    plan_file = folder / "plan.json"
    plan_file.write_text(json.dumps(plan))
    script = Path(__file__).parent / "normuon_run.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(plan_file)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (folder / "one" / "curve.json").exists(), done.stderr[-2000:]
    return folder


def curve(folder: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step."""
    steps = json.loads((folder / "curve.json").read_text())
    return [(step["lm_loss"], step["grad_norm"]) for step in steps]


def test_resumed_run_is_the_same_bit_for_bit(runs: Path) -> None:
    assert len(curve(runs / "one")) == ALL
    assert curve(runs / "resumed") == curve(runs / "one")[HALF:]


@pytest.mark.parametrize(
    "layout", ["grouped", "dp", "ep", "ep-grouped", "pp", "tp", "tp-distributed"]
)
def test_layout_equals_one_process(runs: Path, layout: str) -> None:
    found = curve(runs / layout)
    assert len(found) == HALF
    for a, b in zip(found, curve(runs / "one"), strict=False):
        assert a == pytest.approx(b, rel=1e-5)


def test_blockwise_is_another_update(runs: Path) -> None:
    found, whole = curve(runs / "tp-blockwise"), curve(runs / "one")
    assert len(found) == HALF
    # The first loss is from before the first update.
    assert found[0][0] == pytest.approx(whole[0][0], rel=1e-5)
    assert abs(found[-1][1] / whole[HALF - 1][1] - 1) > 1e-3


@pytest.mark.parametrize("move", ["one-to-tp", "tp-to-one"])
def test_resharded_run_continues(runs: Path, move: str) -> None:
    found = curve(runs / move)
    assert len(found) == 2
    for a, b in zip(found, curve(runs / "one")[HALF:], strict=False):
        assert a == pytest.approx(b, rel=1e-5)


def test_distributed_optimizer_is_refused_by_name(runs: Path) -> None:
    log = (runs / "refused" / "rank0.log").read_text()
    assert "--optimizer normuon does not support --use-distributed-optimizer" in log
    assert not (runs / "refused" / "curve.json").exists()
