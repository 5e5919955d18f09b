"""The vpMoE model: Megatron's GPTModel with GRAPE-M and document resets."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from vpmoe.megatron.model import RotatedGPTModel
from vpmoe.model.config import VpmoeConfig
from vpmoe.model.cross_entropy import ChunkedCrossEntropy
from vpmoe.model.grape import GrapeM


class VpmoeModel(RotatedGPTModel):
    """A pipeline stage of vpMoE.

    Args:
        config: vpMoE's configuration.
        transformer_layer_spec: the layers of this stage, `layer_specs.block_spec`.
        vocab_size: padded vocabulary.
        max_sequence_length: longest sequence.
        **kwargs: Megatron's, `pre_process`, `post_process`, `pg_collection` and `vp_stage` among
            them.
    """

    def __init__(
        self,
        config: VpmoeConfig,
        transformer_layer_spec: TransformerBlockSubmodules,
        vocab_size: int,
        max_sequence_length: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            config,
            transformer_layer_spec,
            vocab_size,
            max_sequence_length,
            position_embedding_type=config.position_embedding_type,
            rotary_base=config.rotary_base,
            share_embeddings_and_output_weights=False,
            **kwargs,
        )
        if config.position_embedding_type == "grapem":
            self.grapem = GrapeM(config, self.pg_collection, self.vp_stage)
        self.lm_loss: ChunkedCrossEntropy | None = None
        if self.post_process and config.loss_kernel == "chunked":
            self.lm_loss = ChunkedCrossEntropy(config, self.pg_collection)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        document_ids: torch.Tensor | None = None,
        loss_weights: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Runs one forward pass.

        Args:
            input_ids: [b, s].
            position_ids: [b, s], restarting where a document starts; GRAPE-M reads them on every
                pipeline stage.
            attention_mask: must be None; documents are separated by document_ids.
            *args: Megatron's further arguments.
            document_ids: int32 [b, s], on every pipeline stage: only tokens with equal ids attend
                to each other. None is one document.
            loss_weights: [b, s], what the per-token losses will be weighed with, up to one common
                factor; lets the chunked loss differentiate in the forward pass. None if unknown.
            **kwargs: Megatron's, such as `labels` [b, s].

        Returns:
            Per-token losses [b, s] with labels on the last stage, logits [b, s, vocab] without, and
            hidden states [s, b, hidden] elsewhere.

        Raises:
            ValueError: an attention mask was given.
            NotImplementedError: packed sequences or inference.
        """
        if attention_mask is not None:
            raise ValueError("vpMoE takes no attention_mask; pass document_ids, int32 [b, s]")
        if kwargs.get("packed_seq_params") is not None:
            raise NotImplementedError(
                "packed_seq_params (THD) is not supported by vpMoE; pass document_ids"
            )
        if self.lm_loss is not None and kwargs.get("labels") is not None:
            kwargs |= {
                "output_processor": self._chunked_loss,
                "output_processor_context": loss_weights,
            }
        return self.forward_documents(input_ids, position_ids, document_ids, *args, **kwargs)

    def _chunked_loss(
        self,
        *,
        hidden_states: torch.Tensor,
        labels: torch.Tensor,
        context: torch.Tensor | None,
        **_: Any,
    ) -> torch.Tensor:
        """Megatron's `output_processor`: the losses in the place of logits and losses."""
        assert self.lm_loss is not None
        losses: torch.Tensor = self.lm_loss(
            hidden_states, self.output_layer.weight, labels, context
        )
        return losses

    def rotations(self, position_ids: torch.Tensor) -> torch.Tensor | None:
        """GRAPE-M's cos and sin, see `GrapeM.forward`; None for other position embeddings."""
        if self.position_embedding_type != "grapem":
            return None
        found: torch.Tensor = self.grapem(position_ids)
        return found
