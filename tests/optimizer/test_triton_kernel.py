"""The fused CUDA step: in Triton's interpreter everywhere, and as compiled where there is a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_normuon import ReferenceNorMuon

from vpmoe.optimizer import NorMuon, polar_express

# What bf16 products leave of the update; rows and columns alone are the worst.
BF16 = 0.06


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """Results of the kernel on the CPU."""
    pytest.importorskip("triton")
    script = Path(__file__).resolve().parent / "interpreted_kernel.py"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    results: dict[str, Any] = json.loads(run.stdout)
    return results


def test_interpreted_kernel_follows_the_formulas(interpreted: dict[str, Any]) -> None:
    assert len(interpreted["formulas"]) == 6
    for errors in interpreted["formulas"].values():
        assert errors["momentum"] < 1e-6
        assert errors["update"] < BF16
        # Squares of O: twice its error.
        assert errors["second"] < 2 * BF16


def test_interpreted_kernel_does_not_see_the_scale(interpreted: dict[str, Any]) -> None:
    for difference in interpreted["scales"].values():
        assert difference < BF16


def test_interpreted_kernel_keeps_the_bound(interpreted: dict[str, Any]) -> None:
    for largest in interpreted["largest_singular_values"]:
        assert 0.8 < largest <= 1.16


def test_interpreted_kernel_on_zero_nan_and_infinity(interpreted: dict[str, Any]) -> None:
    assert interpreted["zero"] == 0.0
    assert interpreted["bad"] == [False, True, True]
    assert interpreted["good_beside_bad"]


def test_interpreted_kernel_finds_stacked_and_separate_matrices(
    interpreted: dict[str, Any],
) -> None:
    assert interpreted["equal"]
    assert interpreted["missing_untouched"]


def cuda_weights(count: int, shape: tuple[int, ...]) -> list[torch.nn.Parameter]:
    weights = [torch.nn.Parameter(torch.randn(shape, device="cuda") * 0.02) for _ in range(count)]
    for weight in weights:
        weight.grad = torch.randn(shape, device="cuda")
    return weights


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("m", "n"), [(128, 1024), (1024, 128), (100, 300), (300, 100), (20, 70), (1, 40), (40, 1)]
)
def test_steps_on_a_gpu_follow_the_formulas(m: int, n: int) -> None:
    """More matrices than programs, so that each works on several."""
    weights = cuda_weights(300, (m, n))
    optimizer = NorMuon(weights, lr=1.0)
    watched = (0, 131, 299)
    references = {index: ReferenceNorMuon((m, n)) for index in watched}
    for _ in range(5):
        for weight in weights:
            weight.data.zero_()
            weight.grad = torch.randn(m, n, device="cuda")
        optimizer.step()
        for index, reference in references.items():
            gradient = weights[index].grad
            assert gradient is not None
            expected = reference.update(gradient.cpu())
            found = -weights[index].detach().cpu().double()
            assert float((found - expected).norm() / expected.norm()) < BF16
            buffer = optimizer.state[weights[index]]["momentum_buffer"].cpu()
            assert float((buffer - reference.m).norm() / reference.m.norm()) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(16, 16), (128, 1024), (8, 40), (256, 512)])
def test_singular_values_on_a_gpu(shape: tuple[int, int]) -> None:
    x = torch.randn(64, *shape, device="cuda")
    found = torch.linalg.svdvals(polar_express(x).double())
    assert float(found.max()) <= 1.16


@pytest.mark.gpu
def test_steps_on_a_gpu_repeat_and_do_not_wait_for_the_device() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        weights = [*cuda_weights(40, (128, 1024)), *cuda_weights(3, (6, 64, 32))]
        weights += cuda_weights(2, (256, 512))
        optimizer = NorMuon(weights, lr=0.1, weight_decay=0.1)
        optimizer.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results.append(weights)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
def test_extra_memory_on_a_gpu_is_a_tenth_of_the_state() -> None:
    weights = [*cuda_weights(512, (128, 1024)), *cuda_weights(512, (1024, 128))]
    optimizer = NorMuon(weights, lr=0.1)
    optimizer.step()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer.step()
    state = sum(t.numel() * 4 for entry in optimizer.state.values() for t in entry.values())
    assert torch.cuda.max_memory_allocated() - held < 0.1 * state
