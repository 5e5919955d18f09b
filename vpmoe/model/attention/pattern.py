"""What one layer's core attention computes, whichever backend computes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AttentionPattern:
    """Causal attention of one layer.

    logit_ij = scale q_i.k_j - m_h (i - j), masked where j > i, i - j >= window or the documents
    differ; the softmax has one more column, the offset b_h, that carries no value.

    Attributes:
        scale: factor of the dot product.
        window: W, the keys seen with the current one; None is all of the past.
        slopes: m_h of the heads on this rank; None without bias.
        has_offset: whether the softmax has the extra column.
    """

    scale: float
    window: int | None = None
    slopes: tuple[float, ...] | None = None
    has_offset: bool = False


def allowed_keys(
    length: int, window: int | None, document_ids: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """The keys that each query attends to, True where allowed.

    Args:
        length: number of tokens T.
        window: W with the current token, or None.
        document_ids: int32 [b, T] or None for one document.
        device: where to build it without document_ids.

    Returns:
        bool [1 or b, T, T], queries first.
    """
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    allowed = distance >= 0
    if window is not None:
        allowed = allowed & (distance < window)
    allowed = allowed[None]
    if document_ids is not None:
        allowed = allowed & (document_ids[:, :, None] == document_ids[:, None, :])
    return allowed
