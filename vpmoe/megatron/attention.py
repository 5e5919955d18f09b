"""Megatron's self-attention as vpMoE extends it."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention

from vpmoe.megatron.contract import Contract, Passes, Reads, Takes

_ATTENTION = "megatron.core.transformer.attention:SelfAttention"
_CORE = ("query", "key", "value", "attention_mask")
_CORE_WORDS = ("attn_mask_type", "attention_bias", "packed_seq_params")

SELF_ATTENTION = Contract(
    "self-attention",
    "vpMoE replaces the forward pass of `SelfAttention`, and runs its core attention, recomputed "
    "or not, as Megatron's own forward pass does.",
    "Compare `Attention.forward` of this version with vpmoe/model/self_attention.py.",
    (
        Takes(
            f"{_ATTENTION}.forward",
            (
                "hidden_states",
                "attention_mask",
                "key_value_states",
                "inference_context",
                "rotary_pos_emb",
                "rotary_pos_cos",
                "rotary_pos_sin",
                "rotary_pos_cos_sin",
                "attention_bias",
                "packed_seq_params",
                "sequence_len_offset",
            ),
            ("inference_params",),
        ),
        Takes(f"{_ATTENTION}._run_core_attention", _CORE, _CORE_WORDS),
        Takes(f"{_ATTENTION}._checkpointed_attention_forward", _CORE, _CORE_WORDS),
        Reads(f"{_ATTENTION}.forward", names=("checkpoint_core_attention", "linear_proj")),
        Takes(f"{_ATTENTION}.get_query_key_value_tensors", ("hidden_states", "key_value_states")),
        Takes(f"{_ATTENTION}.__init__", ("config", "submodules", "layer_number", "attn_mask_type")),
    ),
)

MASK_SLOT = Contract(
    "document ids in the mask's slot",
    "vpMoE sends each micro-batch's document ids where Megatron sends its attention mask, the one "
    "tensor that reaches every layer and survives recomputation. Dropped on the way, documents "
    "would attend to each other in silence.",
    "Follow `attention_mask` from `GPTModel.forward` to the core attention in this version.",
    (
        Takes(
            "megatron.core.models.gpt.gpt_model:GPTModel.forward",
            ("input_ids", "position_ids", "attention_mask"),
        ),
        Passes(
            "megatron.core.models.gpt.gpt_model:GPTModel.forward",
            "decoder",
            "attention_mask",
            "attention_mask",
        ),
        Passes(
            "megatron.core.transformer.transformer_block:TransformerBlock.forward",
            "layer",
            "attention_mask",
            "attention_mask",
        ),
        Passes(
            "megatron.core.transformer.transformer_block:TransformerBlock.forward",
            "checkpointed_forward",
            "attention_mask",
            "attention_mask",
        ),
        Passes(
            "megatron.core.transformer.transformer_layer:TransformerLayer._forward_attention",
            "self_attention",
            "attention_mask",
            "attention_mask",
        ),
    ),
)

ROTARY = Contract(
    "rope",
    "`--position-embedding-type rope` is Megatron's own rotation, applied by vpMoE's attention.",
    "See how `Attention.forward` of this version rotates queries and keys.",
    (
        Takes(
            "megatron.core.models.common.embeddings.rope_utils:apply_rotary_pos_emb",
            ("t", "freqs"),
            ("config", "cu_seqlens", "cp_group"),
        ),
    ),
)

CONTRACTS = (SELF_ATTENTION, MASK_SLOT, ROTARY)

_apply_rotary = ROTARY.take("apply_rotary_pos_emb")


class TrainingSelfAttention(SelfAttention):
    """Megatron's `SelfAttention`, with its core attention as one call for another forward pass."""

    def run_core(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Runs the core attention, which is recomputed in the backward pass where flags ask for it.

        Args:
            query: as the core attention takes it, like the next two.
            key: see there.
            value: see there.
            attention_mask: the document ids, which Megatron passes in the mask's place.
            **kwargs: of the core attention: `attention_bias`, `packed_seq_params`.

        Returns:
            The core attention's result.
        """
        attend = (
            self._checkpointed_attention_forward
            if self.checkpoint_core_attention and self.training
            else self._run_core_attention
        )
        found: torch.Tensor = attend(
            query, key, value, attention_mask, attn_mask_type=self.attn_mask_type, **kwargs
        )
        return found

    def rotate_megatron(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """Megatron's RoPE: queries or keys [s, b, h, d] by angles [s, 1, 1, d]."""
        found: torch.Tensor = _apply_rotary(
            x, angles, config=self.config, cu_seqlens=None, cp_group=self.pg_collection.cp
        )
        return found
