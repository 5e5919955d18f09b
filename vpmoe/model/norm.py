"""RMSNorm that works under sequence parallelism, on the CPU and the GPU.

Megatron's torch fallback refuses sequence parallelism, and its other norms need Apex or
Transformer Engine.
"""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn import functional

from vpmoe.megatron.marks import mark_sequence


class RMSNorm(torch.nn.Module):
    """Root-mean-square normalisation over the last dimension.

    y = x / sqrt(mean(x^2) + eps) * weight, the statistics in fp32, the result in x's dtype
    (Zhang and Sennrich, 2019). The weight is marked `sequence_parallel`, so that Megatron sums its
    gradient over the tensor-parallel ranks when each of them holds a part of the sequence.

    Args:
        config: Megatron's configuration.
        hidden_size: length of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        mark_sequence(self.weight, config.sequence_parallel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises x [..., hidden_size]; same shape and dtype."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
