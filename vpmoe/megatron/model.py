"""Megatron's GPTModel with rotations of one's own and document ids in the place of a mask."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel

from vpmoe.megatron.contract import Contract, MakesTuple, Passes, Takes

_MODEL = "megatron.core.models.gpt.gpt_model:GPTModel"

PREPROCESS = Contract(
    "rotations of the model",
    "vpMoE overrides `GPTModel._preprocess`, whose result is a tuple, and puts GRAPE-M's rotations "
    "in the place of `rotary_pos_emb`, its second element.",
    "See what `_preprocess` of this version makes and what `forward` takes from it, and adapt "
    "`RotatedGPTModel`.",
    (
        Takes(f"{_MODEL}._preprocess", ("input_ids", "position_ids")),
        MakesTuple(f"{_MODEL}._preprocess", ("decoder_input", "rotary_pos_emb")),
        MakesTuple(f"{_MODEL}.forward", ("decoder_input", "rotary_pos_emb")),
        Passes(f"{_MODEL}.forward", "decoder", "rotary_pos_emb", "rotary_pos_emb"),
        Passes(
            "megatron.core.transformer.transformer_layer:TransformerLayer._forward_attention",
            "self_attention",
            "rotary_pos_emb",
            "rotary_pos_emb",
        ),
    ),
)

OUTPUT_PROCESSOR = Contract(
    "loss in the place of logits",
    "With `--loss-kernel chunked` vpMoE computes losses from hidden states through `GPTModel`'s "
    "`output_processor`.",
    "See what `_postprocess` of this version hands to an output processor.",
    (
        Takes(
            f"{_MODEL}.forward",
            keywords=("labels", "output_processor", "output_processor_context"),
        ),
        Passes(f"{_MODEL}._postprocess", "output_processor", "hidden_states", "hidden_states"),
        Passes(f"{_MODEL}._postprocess", "output_processor", "labels", "labels"),
        Passes(f"{_MODEL}._postprocess", "output_processor", "context", "output_processor_context"),
    ),
)

CONTRACTS = (PREPROCESS, OUTPUT_PROCESSOR)


class RotatedGPTModel(GPTModel):
    """`GPTModel` whose layers get `rotations(position_ids)`, where that gives any."""

    def rotations(self, position_ids: torch.Tensor) -> torch.Tensor | None:
        """Computes what rotates queries and keys of all layers.

        Args:
            position_ids: [b, s].

        Returns:
            The rotations, or None where Megatron rotates.

        Raises:
            NotImplementedError: the subclass does not define it.
        """
        raise NotImplementedError

    def forward_documents(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        document_ids: torch.Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Megatron's forward pass, with document ids [b, s] in the slot of the attention mask.

        That slot is the one tensor that reaches every layer and recomputation.
        """
        output: torch.Tensor = GPTModel.forward(
            self, input_ids, position_ids, document_ids, *args, **kwargs
        )
        return output

    def _preprocess(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, ...]:
        output: tuple[Any, ...] = super()._preprocess(input_ids, position_ids, *args, **kwargs)
        rotations = self.rotations(position_ids)
        if rotations is None:
            return output
        decoder_input, theirs, *rest = output
        if theirs is not None:
            raise PREPROCESS.broken(
                "the second element of `GPTModel._preprocess`'s result is set for a position "
                "embedding that Megatron does not know"
            )
        return (decoder_input, rotations, *rest)
