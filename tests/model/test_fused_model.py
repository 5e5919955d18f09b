"""A whole model on the fast paths, its kernels interpreted on the CPU, against the reference.

The interpreter is chosen when a kernel is defined, so the comparison runs in a process of its own:
this file again, under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@pytest.mark.skipif(INTERPRETED, reason="this is the process of its own")
def test_fused_model_in_the_interpreter() -> None:
    """Runs the next test."""
    here = Path(__file__).resolve()
    path = os.pathsep.join([str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here)],
        env={
            **os.environ,
            "PYTHONPATH": path,
            "TRITON_INTERPRET": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-3000:]
    assert "1 passed" in process.stdout


@pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter")
def test_losses_gradients_and_loads_are_the_reference_models(
    small_config: Callable[..., Any],
    small_model: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Routing, dispatch, TPA and loss fused, against sequential experts and full logits."""
    import interpreted_kernel  # noqa: F401 repairs the interpreter

    from vpmoe.model.moe.layer import LocalMoELayer
    from vpmoe.model.moe.router import FusedRouter
    from vpmoe.model.tpa import TPASelfAttention

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(64, (2, 11), generator=generator)
    weights = torch.rand(2, 11, generator=generator)
    results = []
    for fused in (False, True):
        if fused:
            monkeypatch.setattr(
                "vpmoe.model.moe.layer.local_unsupported_reason", lambda config: None
            )
            monkeypatch.setattr(TPASelfAttention, "_fuses", lambda self, x: True)
        model = small_model(
            expert_kernel="fused" if fused else "sequential",
            loss_kernel="chunked" if fused else "full",
        )
        assert any(isinstance(m, LocalMoELayer) for m in model.modules()) is fused
        assert any(isinstance(m, FusedRouter) for m in model.modules()) is fused
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name.endswith("expert_bias"):
                    buffer.copy_(torch.linspace(-0.2, 0.2, buffer.numel()))
        losses = model(
            tokens,
            torch.arange(11).expand(2, 11),
            labels=tokens.roll(-1, 1),
            loss_weights=weights,
        )
        (losses * weights).sum().backward()
        loads = {n: b for n, b in model.named_buffers() if n.endswith("local_tokens_per_expert")}
        results.append((losses, _gradients(model), loads))
    (losses, gradients, loads), (fused_losses, fused_gradients, fused_loads) = results
    torch.testing.assert_close(fused_losses, losses, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == fused_gradients.keys()
    for name, gradient in gradients.items():
        error = (fused_gradients[name] - gradient).norm() / gradient.norm().clamp_min(1e-12)
        assert error < 1e-4, name
    assert loads.keys() == fused_loads.keys()
    for name, load in loads.items():
        assert torch.equal(load, fused_loads[name]), name
        assert load.sum() == 2 * tokens.numel()


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    """By name, sequential experts stacked as grouped ones are."""
    found: dict[str, torch.Tensor] = {}
    stacks: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        stem, separator, rest = name.partition(".local_experts.")
        if separator:
            weight = "weight1" if "linear_fc1" in rest else "weight2"
            stacks.setdefault(f"{stem}.{weight}", []).append(parameter.grad)
        else:
            found[name] = parameter.grad
    return found | {name: torch.stack(parts) for name, parts in stacks.items()}
