"""Attention by einsum over grouped heads: the eager backend's values, summed differently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def einsum_attention(
    q: Any,
    k: Any,
    v: Any,
    offset: Any,
    document_ids: Any,
    pattern: Any,
    logits_as: Callable[[Any], Any] = lambda logits: logits,
) -> Any:
    """Computes eager attention by einsum, with a hook for a bug in the logits.

    Arguments and result are those of `vpmoe.model.attention.eager.eager_attention`.

    Args:
        q: [s, b, h, d].
        k: [s, b, g, d], not repeated over the heads of a group.
        v: [s, b, g, d].
        offset: softmax offsets [h], or None.
        document_ids: int32 [b, s], or None.
        pattern: the layer's `AttentionPattern`.
        logits_as: applied to the biased logits [b, g, h/g, s, s].

    Returns:
        [s, b, h d].
    """
    import torch

    from vpmoe.model.attention.pattern import allowed_keys

    length, batch, heads, channels = q.shape
    groups = k.shape[2]
    grouped = q.reshape(length, batch, groups, heads // groups, channels)
    logits = torch.einsum("sbgrd,tbgd->bgrst", grouped * pattern.scale, k)
    if pattern.slopes is not None:
        slopes = torch.tensor(pattern.slopes, dtype=q.dtype).view(groups, -1, 1, 1)
        position = torch.arange(length)
        logits = logits + slopes * (position[None, :] - position[:, None])
    allowed = allowed_keys(length, pattern.window, document_ids, q.device)
    logits = torch.where(allowed[:, None, None], logits_as(logits), -torch.inf)
    if offset is not None:
        column = offset.view(1, groups, -1, 1, 1).expand(*logits.shape[:-1], 1)
        logits = torch.cat((column, logits), dim=-1)
    weights = logits.softmax(dim=-1)[..., -length:]
    return torch.einsum("bgrst,tbgd->sbgrd", weights, v).reshape(length, batch, -1)
