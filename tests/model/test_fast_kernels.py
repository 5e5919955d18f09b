"""The fused kernels in Triton's interpreter against Megatron's functions and fp64 definitions."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """What `interpreted_fast_kernels.py` prints."""
    script = Path(__file__).resolve().parent / "interpreted_fast_kernels.py"
    process = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return dict(json.loads(process.stdout.splitlines()[-1]))


@pytest.mark.parametrize("kernel", ["routing", "permutation", "tpa"])
def test_kernels_agree_with_their_definitions(results: dict[str, Any], kernel: str) -> None:
    """fp32 rounding everywhere; counts and choices exactly."""
    for case, errors in results[kernel].items():
        for name, error in errors.items():
            assert error <= 5e-6, f"{case}: {name}"


def test_loss_rows_agree_with_fp64(results: dict[str, Any]) -> None:
    """Statistics, and gradients in place, of a rank that holds part of the vocabulary."""
    assert max(results["loss"].values()) < 5e-6


def test_tokens_of_nan_still_get_different_experts(results: dict[str, Any]) -> None:
    """Otherwise places would stay unwritten, and memory be read anywhere."""
    assert results["nan"] == 0
