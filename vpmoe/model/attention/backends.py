"""The attention backends and the choice among them.

| backend | device | window | ALiBi | offset | documents | head dim |
| --- | --- | --- | --- | --- | --- | --- |
| eager | any | yes | yes | yes | yes | any |
| triton | CUDA | yes | yes | yes | yes | 16 to 256, a power of two |
| te | CUDA | yes | no | yes | no | as TE |
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod

import torch

from vpmoe.model.attention.eager import eager_attention
from vpmoe.model.attention.pattern import AttentionPattern


class AttentionBackend(ABC):
    """One way to compute `AttentionPattern`."""

    name: str

    @abstractmethod
    def refusal(
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

    def refusal(
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


# In the order of preference.
_BACKENDS: tuple[AttentionBackend, ...] = (EagerBackend(),)


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

    Raises:
        ValueError: the requested backend cannot do it; the message says why.
    """
    refusals: list[str] = []
    for backend in _BACKENDS:
        if requested not in ("auto", backend.name):
            continue
        reason = backend.refusal(pattern, query, document_ids)
        if reason is None:
            _announce(backend.name, requested, pattern, tuple(refusals))
            return backend
        refusals.append(f"{backend.name}: {reason}")
    raise ValueError(
        f"--attention-kernel {requested} cannot compute this layer ({'; '.join(refusals)}); "
        "auto takes a backend that can"
    )


@functools.cache
def _announce(
    name: str, requested: str, pattern: AttentionPattern, refusals: tuple[str, ...]
) -> None:
    where = "global layers" if pattern.window is None else f"local layers (W={pattern.window})"
    why = f"; {'; '.join(refusals)}" if refusals and requested == "auto" else ""
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        print(f" > attention backend of {where}: {name}{why}", flush=True)
