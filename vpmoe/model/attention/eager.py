"""The reference backend: plain PyTorch in fp32, on any device. Others are compared with it."""

from __future__ import annotations

import torch

from vpmoe.model.attention.pattern import AttentionPattern, allowed_keys


def eager_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offset: torch.Tensor | None,
    document_ids: torch.Tensor | None,
    pattern: AttentionPattern,
) -> torch.Tensor:
    """Attention with materialised fp32 probabilities (fp64 for fp64 inputs).

    Args:
        query: [s, b, h, d].
        key: [s, b, g, d], h a multiple of g.
        value: [s, b, g, d].
        offset: softmax offsets [h], or None.
        document_ids: int32 [b, s]; only equal ids attend. None is one document.
        pattern: what to compute.

    Returns:
        [s, b, h * d] in query's dtype.
    """
    length, batch, heads, channels = query.shape
    dtype = torch.promote_types(query.dtype, torch.float32)
    # [b, h, s, d]
    q, k, v = (x.permute(1, 2, 0, 3).to(dtype) for x in (query, key, value))
    k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))

    logits = torch.matmul(q, k.transpose(-1, -2)) * pattern.scale
    if pattern.slopes is not None:
        slopes = torch.tensor(pattern.slopes, dtype=dtype, device=q.device)
        position = torch.arange(length, dtype=dtype, device=q.device)
        logits = logits - slopes[:, None, None] * (position[:, None] - position[None, :])
    allowed = allowed_keys(length, pattern.window, document_ids, q.device)
    logits = logits.masked_fill(~allowed[:, None], float("-inf"))
    if offset is not None:
        column = offset.to(dtype).view(1, heads, 1, 1).expand(batch, heads, length, 1)
        probabilities = torch.softmax(torch.cat((logits, column), dim=-1), dim=-1)[..., :-1]
    else:
        probabilities = torch.softmax(logits, dim=-1)
    context = torch.matmul(probabilities, v)
    return context.permute(2, 0, 1, 3).reshape(length, batch, heads * channels).to(query.dtype)
