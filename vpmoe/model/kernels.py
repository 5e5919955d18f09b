"""Chooses the kernels where a flag says `auto`, once, when the model is configured."""

from __future__ import annotations

import torch

from vpmoe.model.config import VpmoeConfig
from vpmoe.model.moe.layer import local_unsupported_reason


def resolve_kernels(config: VpmoeConfig) -> VpmoeConfig:
    """Puts the fused paths in the place of `auto` on a GPU that is to be fast.

    In deterministic mode `auto` keeps to the paths that goldens were recorded with; the fused ones
    are as deterministic, and are taken where their flags name them.

    Args:
        config: changed in place, and returned.

    Returns:
        The configuration.

    Raises:
        ValueError: a CUDA graph is asked for and the experts would wait for the device, or the
            chunked loss in fp16.
    """
    fast = torch.cuda.is_available() and not config.deterministic_mode
    refusal = local_unsupported_reason(config) if config.num_moe_experts else None
    if fast and config.expert_kernel == "auto" and config.num_moe_experts and refusal is None:
        config.expert_kernel = "fused"
    if config.loss_kernel == "auto":
        config.loss_kernel = "chunked" if fast and not config.fp16 else "full"
    if config.loss_kernel == "chunked" and config.fp16:
        raise ValueError(
            "--loss-kernel chunked: gradients of the logits are computed before the loss scale "
            "reaches them, and would underflow in fp16; use full, or --bf16"
        )
    waits = config.num_moe_experts and config.expert_kernel != "fused"
    if config.cuda_graph_impl == "full_iteration" and waits:
        reason = f" (refused: {refusal})" if refusal else ""
        raise ValueError(
            f"--cuda-graph-impl full_iteration: --expert-kernel {config.expert_kernel} waits for "
            f"the device in every layer, which a graph cannot hold; use fused{reason}"
        )
    return config
