"""What `auto` resolves to, on a machine with and without a GPU, and what a CUDA graph refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vpmoe.model.kernels import resolve_kernels

# What the fused router and experts can do.
FUSIBLE = {
    "moe_router_score_function": "sigmoid",
    "moe_router_dtype": "fp32",
    "moe_router_load_balancing_type": "seq_aux_loss",
    "loss_kernel": "auto",
}


@pytest.mark.parametrize(
    ("gpu", "changes", "experts", "loss"),
    [
        (False, {}, "auto", "full"),
        (True, {}, "fused", "chunked"),
        (True, {"deterministic_mode": True}, "auto", "full"),
        (True, {"expert_kernel": "grouped", "loss_kernel": "full"}, "grouped", "full"),
        (True, {"expert_kernel": "fused", "deterministic_mode": True}, "fused", "full"),
        (True, {"moe_z_loss_coeff": 1e-3}, "auto", "chunked"),
        (True, {"num_moe_experts": None}, "auto", "chunked"),
        (True, {"fp16": True}, "fused", "full"),
    ],
)
def test_auto_is_fast_where_it_may_be(
    small_config: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool,
    changes: dict[str, Any],
    experts: str,
    loss: str,
) -> None:
    config = small_config(**{**FUSIBLE, **changes})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    resolved = resolve_kernels(config)
    assert (resolved.expert_kernel, resolved.loss_kernel) == (experts, loss)


def test_the_loss_scale_must_reach_the_logits(small_config: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"--loss-kernel chunked.*would underflow in fp16"):
        resolve_kernels(small_config(loss_kernel="chunked", fp16=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_kernel": "grouped"}, "--expert-kernel grouped waits for the device"),
        ({"moe_z_loss_coeff": 1e-3}, r"refused: it has a z-loss"),
    ],
)
def test_a_graph_takes_only_what_never_waits(
    small_config: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    graph = {"cuda_graph_impl": "full_iteration"}
    assert resolve_kernels(small_config(**FUSIBLE, **graph)).expert_kernel == "fused"
    assert resolve_kernels(small_config(**FUSIBLE, **graph, num_moe_experts=None))
    with pytest.raises(ValueError, match=message):
        resolve_kernels(small_config(**{**FUSIBLE, **graph, **changes}))
