"""Self-attention of a vpMoE layer: projections, QK-norm, rotation, core attention, output."""

from __future__ import annotations

from typing import Any

import torch

from vpmoe.megatron.attention import TrainingSelfAttention
from vpmoe.megatron.helpers import apply_module
from vpmoe.model.grape import rotate


class VpmoeSelfAttention(TrainingSelfAttention):
    """Megatron's self-attention for training, with rotations in fp32 and document resets.

    Order: QKV (or a subclass's factors), QK-norm, rotation, core attention, output projection.
    Megatron's own forward rounds cos and sin to the model's dtype and serves inference, which
    vpMoE does not.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        key_value_states: torch.Tensor | None = None,
        inference_context: Any = None,
        rotary_pos_emb: torch.Tensor | None = None,
        rotary_pos_cos: torch.Tensor | None = None,
        rotary_pos_sin: torch.Tensor | None = None,
        rotary_pos_cos_sin: torch.Tensor | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
        sequence_len_offset: Any = None,
        *,
        inference_params: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attends within the sequence.

        Args:
            hidden_states: [s, b, hidden], or this rank's part of s under sequence parallelism.
            attention_mask: the micro-batch's document_ids, int32 [b, s], or None; see
                `CoreAttention.forward`.
            key_value_states: refused; there is no cross-attention.
            inference_context: refused; vpMoE trains only.
            rotary_pos_emb: GRAPE-M's cos and sin [2, s, b, g, d/2], Megatron's RoPE angles
                [s, 1, 1, d], or None.
            rotary_pos_cos: refused, as are the next two: flash decode and flashinfer.
            rotary_pos_sin: see above.
            rotary_pos_cos_sin: see above.
            attention_bias: refused by the core attention.
            packed_seq_params: refused by the core attention.
            sequence_len_offset: of inference; ignored.
            inference_params: refused; Megatron's old name of inference_context.

        Returns:
            [s, b, hidden] and the bias, None.

        Raises:
            NotImplementedError: inference, or rotations of flash decode or flashinfer.
        """
        del sequence_len_offset
        if inference_context is not None or inference_params is not None:
            raise NotImplementedError("vpMoE's attention is for training; inference is refused")
        if not (rotary_pos_cos is rotary_pos_sin is rotary_pos_cos_sin is None):
            raise NotImplementedError(
                "flash decode and flashinfer rotations are not supported by vpMoE's attention"
            )
        query, key, value = self._attention_inputs(hidden_states, key_value_states, rotary_pos_emb)
        context = self.run_core(
            query,
            key,
            value,
            attention_mask,
            attention_bias=attention_bias,
            packed_seq_params=packed_seq_params,
        )
        output: tuple[torch.Tensor, torch.Tensor | None] = apply_module(self.linear_proj)(context)
        return output

    def _attention_inputs(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None,
        rotation: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value as the core attention takes them, normalised and rotated."""
        query, key, value = self.get_query_key_value_tensors(hidden_states, key_value_states)
        if rotation is not None and self.config.rotates(self.layer_number):
            query, key = self._rotate(query, rotation), self._rotate(key, rotation)
        return query, key, value

    def _rotate(self, x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        if self.config.position_embedding_type == "grapem":
            return rotate(x, rotation)
        return self.rotate_megatron(x, rotation)
