"""When routing and dispatch are fused, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.fixture
def on_a_gpu(megatron: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a CUDA device; nothing runs on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"expert_model_parallel_size": 2}, "expert-parallel"),
        ({"tensor_model_parallel_size": 2, "sequence_parallel": True}, "tensor-parallel"),
        ({"num_moe_experts": 12, "moe_router_num_groups": 4}, "power of two"),
        ({"moe_router_dtype": None}, "fp32"),
        ({"moe_router_load_balancing_type": "aux_loss"}, "aux_loss"),
        ({"moe_z_loss_coeff": 1e-3}, "z-loss"),
    ],
)
def test_what_cannot_be_fused_is_refused_with_the_reason(
    small_config: Callable[..., Any], changes: dict[str, Any], reason: str
) -> None:
    from vpmoe.model.moe.layer import local_unsupported_reason

    assert reason in str(local_unsupported_reason(small_config(**changes)))


def test_without_a_gpu_fusing_is_refused(small_model: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="--expert-kernel fused: it needs a CUDA device"):
        small_model(expert_kernel="fused")
