"""Transformer Engine's attention with softmax offsets that belong to somebody else."""

from __future__ import annotations

from typing import Any

import torch

from vpmoe.megatron.contract import Contract, Reads, Takes

_ATTENTION = "transformer_engine.pytorch:DotProductAttention"

LENT_OFFSET = Contract(
    "lent softmax offset",
    "Layers of one pattern share one `DotProductAttention`, and each lends it its softmax offset: "
    "vpMoE takes the module's own parameter out and puts the layer's into its `__dict__`. An "
    "offset under another name would be left out of the softmax in silence.",
    "See which attribute `DotProductAttention.forward` of this version reads its offsets from.",
    (
        Takes(
            f"{_ATTENTION}.__init__",
            ("num_attention_heads", "kv_channels"),
            (
                *("num_gqa_groups", "attention_dropout", "qkv_format", "attn_mask_type"),
                *("window_size", "softmax_scale", "softmax_type"),
            ),
        ),
        Reads(f"{_ATTENTION}.forward", names=("softmax_offset",)),
    ),
    needs="transformer_engine",
)

CONTRACTS = (LENT_OFFSET,)


def attention_without_offset(*args: Any, softmax_type: str, **kwargs: Any) -> Any:
    """Builds a `DotProductAttention` whose softmax offset, if it has any, is lent at each call.

    Args:
        *args: of `DotProductAttention`.
        softmax_type: "learnable" or "vanilla", which has no offset.
        **kwargs: of `DotProductAttention`.

    Returns:
        The module.

    Raises:
        MegatronChangedError: the module has no such parameter.
    """
    LENT_OFFSET.check()
    import transformer_engine.pytorch as te

    module = te.DotProductAttention(*args, softmax_type=softmax_type, **kwargs)
    if softmax_type != "vanilla" and module._parameters.pop("softmax_offset", None) is None:
        raise LENT_OFFSET.broken(
            f"a DotProductAttention with softmax_type {softmax_type!r} has no parameter "
            "`softmax_offset`"
        )
    return module


def lend_offset(module: Any, offset: torch.Tensor) -> None:
    """Puts a layer's softmax offset where the module's next call reads it."""
    # Past nn.Module's setter, which would adopt the layer's parameter.
    module.__dict__["softmax_offset"] = offset
