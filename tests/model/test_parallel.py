"""Parallel layouts equal one process, and checkpoints move between them: real runs over gloo.

All runs are Megatron's `pretrain()` on a small vpMoE with every feature on, two documents a
sequence. fp32 tolerances: 1e-5 relative in loss and gradient norm at every step, 1e-5 of each
weight's norm and 5e-3 of its last movement after 10 steps; bit-equality where the layout is the
same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

_MODEL = """
--num-layers 4 --hidden-size 32 --num-attention-heads 4 --group-query-attention
--num-query-groups 2 --kv-channels 8 --ffn-hidden-size 16 --seq-length 24
--max-position-embeddings 24 --micro-batch-size 2 --global-batch-size 4 --normalization RMSNorm
--qk-layernorm --squared-relu --disable-bias-linear --untie-embeddings-and-output-weights
--attention-dropout 0 --hidden-dropout 0 --vocab-size 255 --window-size 6
--window-attn-skip-freq 4 --no-rope-freq 4 --position-embedding-type grapem --grape-a --use-tpa
--tpa-rank 2 --tpa-q-rank 3 --softmax-type learnable --seed 7 --lr-decay-iters 10
--grapem-log-freq-scale 1
"""
_EXPERTS = """
--num-experts 4 --moe-layer-freq ([0]+[1]*3) --moe-ffn-hidden-size 8
--moe-shared-expert-intermediate-size 12 --moe-router-topk 2 --moe-router-num-groups 2
--moe-router-group-topk 1 --moe-router-score-function sigmoid
--moe-router-topk-scaling-factor 2.5 --moe-router-load-balancing-type seq_aux_loss
--moe-aux-loss-coeff 1e-4 --moe-router-enable-expert-bias --moe-router-bias-update-rate 1e-3
--moe-router-dtype fp32
"""
MODEL, EXPERTS = _MODEL.split(), _EXPERTS.split()
STEPS, SAVED = 10, 5

TP = ["--tensor-model-parallel-size", "2"]
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "one": (1, EXPERTS),
    "dense": (1, []),
    "tp": (2, TP),
    "tp-sp": (2, [*EXPERTS, *TP, "--sequence-parallel"]),
    "ep": (2, [*EXPERTS, "--expert-model-parallel-size", "2"]),
    "pp": (2, [*EXPERTS, "--pipeline-model-parallel-size", "2"]),
    "vpp": (
        2,
        [
            *EXPERTS,
            *["--pipeline-model-parallel-size", "2"],
            *["--num-virtual-stages-per-pipeline-rank", "2"],
        ],
    ),
    "dp": (2, EXPERTS),
    "grouped": (1, [*EXPERTS, "--expert-kernel", "grouped"]),
    "grouped-ep": (
        2,
        [*EXPERTS, "--expert-model-parallel-size", "2", "--expert-kernel", "grouped"],
    ),
    "grouped-tp-sp": (2, [*EXPERTS, *TP, "--sequence-parallel", "--expert-kernel", "grouped"]),
}
# Saved by the first layout, continued by the second. With expert parallelism Megatron chains one
# optimizer for the experts to that of the rest and saves them under other names than a single one:
# its Adam states don't move there, so those continue from the weights alone.
MOVES = [
    ("one", "one"),
    ("one", "tp-sp"),
    ("tp-sp", "one"),
    ("one", "ep"),
    ("ep", "one"),
    ("pp", "one"),
    ("one", "pp"),
    ("one", "grouped"),
    ("grouped-ep", "one"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs every layout and every continuation; one folder each."""
    if torch.cuda.is_available():
        pytest.skip("the CPU lane is for machines without CUDA")
    folder = tmp_path_factory.mktemp("parallel")
    plan: list[dict[str, Any]] = []
    for name, (ranks, flags) in LAYOUTS.items():
        save = ["--save", str(folder / name / "checkpoint"), "--save-interval", str(SAVED)]
        plan.append(entry(folder / name, ranks, [*flags, *save, "--train-iters", str(STEPS)]))
    for source, target in MOVES:
        ranks, flags = LAYOUTS[target]
        load = ["--load", str(folder / source / "checkpoint"), "--ckpt-step", str(SAVED)]
        # The schedule counts samples up to --train-iters.
        load.append("--override-opt_param-scheduler")
        if source != target:
            load.append("--no-load-rng")
        if ("ep" in source) != ("ep" in target):
            load.append("--no-load-optim")
        name = f"{source}-to-{target}"
        steps = STEPS if source == target else SAVED + continued(source, target)
        plan.append(entry(folder / name, ranks, [*flags, *load, "--train-iters", str(steps)]))
    plan_file = folder / "plan.json"
    plan_file.write_text(json.dumps(plan))
    script = Path(__file__).parent / "megatron_run.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(plan_file)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        logs = "\n".join(
            f"== {log}\n{log.read_text()[-1500:]}"
            for log in sorted(folder.glob("*/rank*.log"))
            if not (log.parent / "curve.json").exists()
        )
        pytest.fail(f"{done.stderr[-2000:]}\n{logs}")
    return folder


def continued(source: str, target: str) -> int:
    """Steps that a continuation takes: 1 shows the weights, the second the optimizer's state."""
    return 1 if ("ep" in source) != ("ep" in target) else 2


def entry(out: Path, ranks: int, flags: list[str]) -> dict[str, Any]:
    """One run of the plan."""
    return {"out": str(out), "ranks": ranks, "flags": [*MODEL, *flags]}


def curve(folder: Path) -> list[dict[str, float]]:
    """Loss and gradient norm of each step."""
    found: list[dict[str, float]] = json.loads((folder / "curve.json").read_text())
    return found


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The whole model of a distributed checkpoint, read without process groups."""
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = FileSystemReader(checkpoint)
    state = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and not key.startswith("optimizer.")
    }
    load(state, storage_reader=reader, no_dist=True)
    return state


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("one", "dense")])
def test_layout_equals_one_process(runs: Path, layout: str) -> None:
    base = "dense" if layout == "tp" else "one"
    expected, actual = curve(runs / base), curve(runs / layout)
    assert len(expected) == len(actual) == STEPS
    for a, b in zip(actual, expected, strict=True):
        assert a["lm_loss"] == pytest.approx(b["lm_loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
    before = weights(runs / base / "checkpoint" / f"iter_{SAVED:07d}")
    one, other = (
        weights(runs / name / "checkpoint" / f"iter_{STEPS:07d}") for name in (base, layout)
    )
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        error = float((other[name].double() - tensor.double()).norm())
        assert error < 1e-5 * float(tensor.norm()) + 1e-6, f"{name} is off by {error:.1e}"
        # Slow weights, phi first of all, need the sharper measure: how far they moved.
        moved = float((tensor.double() - before[name].double()).norm())
        assert error <= 5e-3 * moved, f"{name} moved {moved:.1e} and is off by {error:.1e}"


def test_the_runs_learn(runs: Path) -> None:
    losses = [step["lm_loss"] for step in curve(runs / "one")]
    assert losses[-1] < losses[0] - 0.1


def test_weights_moved(runs: Path) -> None:
    """What has to be reduced over ranks moved far beyond the tolerance."""
    before, after = (
        weights(runs / "one" / "checkpoint" / f"iter_{step:07d}") for step in (SAVED, STEPS)
    )
    for name in (
        "grapem.phi",
        "decoder.layers.0.self_attention.linear_qkv.b_q",
        "decoder.layers.0.self_attention.linear_qkv.b_v",
        "decoder.layers.3.self_attention.core_attention.softmax_offset",
        "decoder.layers.1.mlp.router.weight",
    ):
        change = float((after[name] - before[name]).norm())
        assert change > 1e-4, f"{name} moved by {change:.1e}"


def test_phi_is_saved_once_in_fp32(runs: Path) -> None:
    for layout in ("one", "pp", "tp-sp"):
        state = weights(runs / layout / "checkpoint" / f"iter_{STEPS:07d}")
        assert [name for name in state if "phi" in name] == ["grapem.phi"]
        assert state["grapem.phi"].shape == (4,)
        assert state["grapem.phi"].dtype == torch.float32


def test_resume_is_bit_exact(runs: Path) -> None:
    assert curve(runs / "one-to-one") == curve(runs / "one")[SAVED:]


@pytest.mark.parametrize(("source", "target"), [m for m in MOVES if m[0] != m[1]])
def test_checkpoint_moves_between_layouts(runs: Path, source: str, target: str) -> None:
    actual = curve(runs / f"{source}-to-{target}")
    steps = continued(source, target)
    expected = curve(runs / "one")[SAVED : SAVED + steps]
    assert len(actual) == steps
    for a, b in zip(actual, expected, strict=True):
        assert a["lm_loss"] == pytest.approx(b["lm_loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_export_does_not_know_the_layout(runs: Path, layout: str, tmp_path: Path) -> None:
    from vpmoe.export.convert import export_checkpoint

    checkpoint = runs / layout / "checkpoint"
    export = export_checkpoint(checkpoint, tmp_path / "export")
    saved, tensors = weights(checkpoint / f"iter_{STEPS:07d}"), export.read()
    assert export.iteration == STEPS
    assert tensors.keys() == saved.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, saved[name])] == []
    base = export_checkpoint(
        runs / ("dense" if layout in ("dense", "tp") else "one") / "checkpoint", tmp_path / "base"
    )
    assert export.architecture == base.architecture
