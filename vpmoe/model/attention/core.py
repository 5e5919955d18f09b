"""The core attention module of every vpMoE layer: it owns the softmax offsets and the backend."""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule

from vpmoe.megatron.checkpoint import (
    ensure_metadata_has_dp_cp_group,
    make_sharded_tensors_for_checkpoint,
)
from vpmoe.megatron.helpers import divide, get_pg_rank, get_pg_size
from vpmoe.model.attention.backends import choose_backend
from vpmoe.model.attention.pattern import AttentionPattern
from vpmoe.model.config import VpmoeConfig
from vpmoe.model.grape import alibi_slopes
from vpmoe.model.window import layer_window


class CoreAttention(MegatronModule):
    """Causal attention with window, ALiBi bias, softmax offsets and document resets.

    The learnable softmax offset is one logit a head (GPT-OSS): an extra column that takes part in
    the fp32 softmax and carries no value. It starts at zero on every backend.

    Args:
        config: vpMoE's configuration.
        layer_number: counted from 1 over the whole model; decides local or global.
        attn_mask_type: causal; vpMoE has no other.
        attention_type: "self".
        softmax_scale: factor of the dot product; 1/sqrt(d) when None.
        cp_comm_type: of no effect, context parallelism is refused.
        pg_collection: process groups; `tp` is used.

    Raises:
        ValueError: context parallelism, or a mask that is not causal.
    """

    def __init__(
        self,
        config: VpmoeConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        del attention_type, cp_comm_type
        if config.context_parallel_size > 1:
            raise ValueError("context parallelism is not supported by vpMoE's core attention")
        if attn_mask_type != AttnMaskType.causal:
            raise ValueError(f"vpMoE's attention is causal, not {attn_mask_type}")
        if pg_collection is None:
            pg_collection = ProcessGroupCollection.use_mpu_process_groups(required_pgs=["tp"])
        self.tp_group = pg_collection.tp
        self.layer_number = layer_number
        self.heads = divide(config.num_attention_heads, get_pg_size(self.tp_group))
        self.pattern = self._pattern(softmax_scale)
        self.softmax_offset: torch.Tensor | None = None
        self._init_offset()

    def _pattern(self, softmax_scale: float | None) -> AttentionPattern:
        config = self.config
        assert config.kv_channels is not None
        window = layer_window(config, self.layer_number)
        slopes = None
        if config.grape_a and window is None:
            first = get_pg_rank(self.tp_group) * self.heads
            slopes = alibi_slopes(config.num_attention_heads)[first : first + self.heads]
        scale = softmax_scale if softmax_scale is not None else 1 / math.sqrt(config.kv_channels)
        if config.apply_query_key_layer_scaling:
            scale /= self.layer_number
        return AttentionPattern(scale, window, slopes, config.softmax_type != "vanilla")

    def _init_offset(self) -> None:
        kind = self.config.softmax_type
        if kind == "vanilla":
            return
        offset = torch.zeros(self.heads, dtype=self.config.params_dtype)
        if kind == "learnable":
            self.softmax_offset = torch.nn.Parameter(offset)
            set_tensor_model_parallel_attributes(
                self.softmax_offset, is_parallel=True, dim=0, stride=1
            )
        elif kind == "off-by-one":
            del self.softmax_offset
            self.register_buffer("softmax_offset", offset, persistent=False)
        else:
            raise ValueError(f"--softmax-type {kind} is not supported")

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        document_ids: torch.Tensor | None,
        /,
        *,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """Attends.

        Args:
            query: [s, b, h/TP, d].
            key: [s, b, g/TP, d].
            value: [s, b, g/TP, d].
            document_ids: int32 [b, s]; tokens with the same id attend to each other. None is one
                document. Megatron passes it in place of the attention mask, the one tensor a
                micro-batch that reaches every layer and survives activation recomputation.
            attn_mask_type: causal or None.
            attention_bias: refused; ALiBi is computed from positions.
            packed_seq_params: refused; THD packing is not supported.

        Returns:
            [s, b, h/TP * d].

        Raises:
            NotImplementedError: a bias tensor or THD packing.
            ValueError: document_ids of another shape or dtype, an attention mask for example.
        """
        if packed_seq_params is not None:
            raise NotImplementedError(
                f"layer {self.layer_number}: packed_seq_params (THD) is not supported by vpMoE's "
                "attention, which is training only; pass [batch, sequence] with document_ids"
            )
        if attention_bias is not None:
            raise NotImplementedError(
                f"layer {self.layer_number}: attention_bias is not supported; GRAPE-A computes its "
                "bias inside the kernel"
            )
        if attn_mask_type not in (None, AttnMaskType.causal):
            raise ValueError(f"vpMoE's attention is causal, not {attn_mask_type}")
        _check_document_ids(document_ids, query)
        backend = choose_backend(self.config.attention_kernel, self.pattern, query, document_ids)
        return backend.attend(query, key, value, self.softmax_offset, document_ids, self.pattern)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The softmax offsets, sharded over the heads."""
        if not isinstance(self.softmax_offset, torch.nn.Parameter):
            return {}
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        return make_sharded_tensors_for_checkpoint(
            {"softmax_offset": self.softmax_offset},
            prefix,
            {"softmax_offset": 0},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )


def _check_document_ids(document_ids: torch.Tensor | None, query: torch.Tensor) -> None:
    if document_ids is None:
        return
    expected = (query.shape[1], query.shape[0])
    if document_ids.dtype != torch.int32 or tuple(document_ids.shape) != expected:
        raise ValueError(
            f"document_ids must be int32 {list(expected)} ([batch, sequence]), found "
            f"{document_ids.dtype} {list(document_ids.shape)}; attention masks are not supported"
        )
