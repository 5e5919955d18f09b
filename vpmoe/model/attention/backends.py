"""The attention backends and the choice among them.

| backend | device | window | ALiBi | offset | documents | head dim |
| --- | --- | --- | --- | --- | --- | --- |
| eager | any | yes | yes | yes | yes | any |
| triton | CUDA | yes | yes | yes | yes | 16 to 256, a power of two |
| te | CUDA | yes | no | yes | no | as TE |
"""

from __future__ import annotations

import functools
import importlib.util
from abc import ABC, abstractmethod
from typing import Any

import torch

from vpmoe.megatron.transformer_engine import attention_without_offset, lend_offset
from vpmoe.model.attention.eager import eager_attention
from vpmoe.model.attention.pattern import AttentionPattern
from vpmoe.model.window import window_to_left_right


class AttentionBackend(ABC):
    """One way to compute `AttentionPattern`."""

    name: str

    @abstractmethod
    def unsupported_reason(
        self, pattern: AttentionPattern, query: torch.Tensor, document_ids: torch.Tensor | None
    ) -> str | None:
        """Why this backend cannot do it exactly, or None when it can."""

    @abstractmethod
    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        offset: torch.Tensor | None,
        document_ids: torch.Tensor | None,
        pattern: AttentionPattern,
    ) -> torch.Tensor:
        """Computes attention: shapes as in `eager_attention`."""


class EagerBackend(AttentionBackend):
    """The fp32 reference."""

    name = "eager"

    def unsupported_reason(
        self, pattern: AttentionPattern, query: torch.Tensor, document_ids: torch.Tensor | None
    ) -> str | None:
        """Refuses nothing."""
        return None

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        offset: torch.Tensor | None,
        document_ids: torch.Tensor | None,
        pattern: AttentionPattern,
    ) -> torch.Tensor:
        """See `eager_attention`."""
        return eager_attention(query, key, value, offset, document_ids, pattern)


@functools.cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


class TritonBackend(AttentionBackend):
    """The fused kernel of `triton_kernel`: everything in one pass, nothing materialised."""

    name = "triton"

    def unsupported_reason(
        self, pattern: AttentionPattern, query: torch.Tensor, document_ids: torch.Tensor | None
    ) -> str | None:
        """Needs CUDA, Triton, fp32, fp16 or bf16, and a head dimension that is a power of two."""
        if not query.is_cuda:
            return "needs a CUDA device"
        if not _installed("triton"):
            return "Triton is not installed"
        if query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"computes in fp32, fp16 or bf16, not {query.dtype}"
        channels = query.shape[-1]
        if channels < 16 or channels > 256 or channels & (channels - 1):
            return f"head dimension {channels} is not a power of two from 16 to 256"
        return None

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        offset: torch.Tensor | None,
        document_ids: torch.Tensor | None,
        pattern: AttentionPattern,
    ) -> torch.Tensor:
        """See `triton_attention`."""
        from vpmoe.model.attention.triton_kernel import triton_attention

        return triton_attention(query, key, value, offset, document_ids, pattern)


class TransformerEngineBackend(AttentionBackend):
    """Transformer Engine's DotProductAttention, where it computes the same function."""

    name = "te"

    def unsupported_reason(
        self, pattern: AttentionPattern, query: torch.Tensor, document_ids: torch.Tensor | None
    ) -> str | None:
        """Refuses ALiBi (TE would materialise a bf16 bias), documents, fp32 and the CPU."""
        if not query.is_cuda:
            return "needs a CUDA device"
        if not _installed("transformer_engine"):
            return "Transformer Engine is not installed"
        if query.dtype not in (torch.float16, torch.bfloat16):
            return f"attends in fp16 or bf16, not {query.dtype}"
        if pattern.slopes is not None:
            return "would round the ALiBi bias to the model's dtype"
        if document_ids is not None:
            return "takes documents in THD packing only"
        return None

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        offset: torch.Tensor | None,
        document_ids: torch.Tensor | None,
        pattern: AttentionPattern,
    ) -> torch.Tensor:
        """Runs TE's module with this layer's offset in the place of its own."""
        module = _te_module(pattern, query.shape[2], key.shape[2], query.shape[3])
        if offset is not None:
            lend_offset(module, offset)
        out: torch.Tensor = module(query, key, value)
        return out


@functools.cache
def _te_module(pattern: AttentionPattern, heads: int, groups: int, channels: int) -> Any:
    # Shared by the layers of one pattern; each of them brings its own offset.
    return attention_without_offset(
        heads,
        channels,
        num_gqa_groups=groups,
        attention_dropout=0.0,
        qkv_format="sbhd",
        attn_mask_type="causal",
        window_size=None if pattern.window is None else window_to_left_right(pattern.window),
        softmax_scale=pattern.scale,
        softmax_type="learnable" if pattern.has_offset else "vanilla",
    )


# In the order of preference.
BACKENDS: tuple[AttentionBackend, ...] = (
    TritonBackend(),
    TransformerEngineBackend(),
    EagerBackend(),
)


def choose_backend(
    requested: str,
    pattern: AttentionPattern,
    query: torch.Tensor,
    document_ids: torch.Tensor | None,
) -> AttentionBackend:
    """Picks the backend for one call and says so the first time.

    Args:
        requested: a backend's name, or "auto" for the fastest that computes the pattern exactly.
        pattern: what the layer computes.
        query: [s, b, h, d], for device, dtype and head dimension.
        document_ids: int32 [b, s] or None.

    Returns:
        The backend.

    Raises:
        ValueError: the requested backend cannot do it; the message says why.
    """
    reasons: list[str] = []
    for backend in BACKENDS:
        if requested not in ("auto", backend.name):
            continue
        reason = backend.unsupported_reason(pattern, query, document_ids)
        if reason is None:
            _announce(backend.name, requested, pattern, tuple(reasons))
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise ValueError(
        f"--attention-kernel {requested} cannot compute this layer ({'; '.join(reasons)}); "
        "auto takes a backend that can"
    )


@functools.cache
def _announce(
    name: str, requested: str, pattern: AttentionPattern, reasons: tuple[str, ...]
) -> None:
    where = "global layers" if pattern.window is None else f"local layers (W={pattern.window})"
    why = f"; {'; '.join(reasons)}" if reasons and requested == "auto" else ""
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        print(f" > attention backend of {where}: {name}{why}", flush=True)
