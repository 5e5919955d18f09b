"""Tensor Product Attention (Zhang et al., 2025): low-rank queries, keys and values per token.

q_h = 1/R_q sum_r A_q(x)[h, r] B_q(x)[r, :], and k_g, v_g likewise with rank R over the KV groups.
All factors are linear in x without bias. q, k and v are materialised for training: at vpMoE's ranks
the factorised form costs more arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch.nn import functional

from vpmoe.megatron.checkpoint import (
    ensure_metadata_has_dp_cp_group,
    make_sharded_tensors_for_checkpoint,
)
from vpmoe.megatron.helpers import apply_module, get_pg_size
from vpmoe.model.config import VpmoeConfig
from vpmoe.model.norm import RMSNorm
from vpmoe.model.self_attention import VpmoeSelfAttention


class TensorProductQKV(MegatronModule):
    """The factors of TPA: takes the place of Megatron's `linear_qkv`.

    Weights, rows are outputs: `a_q` [H/TP R_q, hidden], `a_k` and `a_v` [G/TP R, hidden] are
    sharded over heads and groups; `b_q` [R_q D, hidden], `b_k` and `b_v` [R D, hidden] serve all
    heads, are replicated, and have their gradients summed over the tensor-parallel ranks.

    Args:
        input_size: hidden size.
        output_size: of Megatron's interface; implied by the configuration.
        config: vpMoE's configuration.
        init_method: of Megatron's interface; `vpmoe.model.initialization` draws the weights.
        tp_group: tensor-parallel group.
        **kwargs: of Megatron's interface; not used.

    Attributes:
        SHARDED: names of the sharded factors.
        REPLICATED: names of the replicated ones.

    Raises:
        ValueError: the configuration has a bias, or fewer query groups than tensor-parallel ranks
            need.
    """

    SHARDED = ("a_q", "a_k", "a_v")
    REPLICATED = ("b_q", "b_k", "b_v")

    def __init__(
        self,
        input_size: int,
        output_size: int,
        /,
        *,
        config: VpmoeConfig,
        init_method: Callable[[torch.Tensor], Any],
        tp_group: torch.distributed.ProcessGroup,
        **kwargs: Any,
    ) -> None:
        super().__init__(config=config)
        del output_size, init_method, kwargs  # vpmoe.model.initialization draws the weights
        assert config.tpa_rank is not None
        assert config.tpa_q_rank is not None
        assert config.kv_channels is not None
        assert config.num_query_groups is not None
        if config.add_bias_linear or config.add_qkv_bias:
            raise ValueError(
                "TPA's factors have no bias; set add_bias_linear and add_qkv_bias to False"
            )
        self.tp_group = tp_group
        size = get_pg_size(tp_group)
        if config.num_query_groups % size:
            raise ValueError(
                f"TPA: num_query_groups {config.num_query_groups} must be at least, and divide "
                f"among, {size} tensor-parallel ranks"
            )
        self.heads = config.num_attention_heads // size
        self.groups = config.num_query_groups // size
        self.channels = config.kv_channels
        self.q_rank, self.rank = config.tpa_q_rank, config.tpa_rank
        rows = {
            "a_q": self.heads * self.q_rank,
            "a_k": self.groups * self.rank,
            "a_v": self.groups * self.rank,
            "b_q": self.q_rank * self.channels,
            "b_k": self.rank * self.channels,
            "b_v": self.rank * self.channels,
        }
        for name, count in rows.items():
            weight = torch.nn.Parameter(torch.empty(count, input_size, dtype=config.params_dtype))
            if name in self.SHARDED:
                set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=0, stride=1)
            setattr(self, name, weight)

    def forward(
        self,
        x: torch.Tensor,
        norms: tuple[RMSNorm, RMSNorm] | None = None,
        rotation: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Composes this rank's heads.

        Args:
            x: [s, b, hidden], or this rank's part of s under sequence parallelism.
            norms: QK-norm's two modules; with them and `rotation`, one fused kernel normalises and
                rotates as well.
            rotation: GRAPE-M's cos and sin, fp32 [2, s, b, 1, D/2].

        Returns:
            query [s, b, H/TP, D], key and value [s, b, G/TP, D].
        """
        if self.config.sequence_parallel:
            x = gather_from_sequence_parallel_region(
                x, tensor_parallel_output_grad=True, group=self.tp_group
            )
        else:
            x = copy_to_tensor_model_parallel_region(x, self.tp_group)
        weights = [getattr(self, name) for name in self.SHARDED]
        weights += [
            copy_to_tensor_model_parallel_region(getattr(self, name), self.tp_group)
            for name in self.REPLICATED
        ]
        factors = functional.linear(x, torch.cat(weights))
        if norms is not None and rotation is not None:
            from vpmoe.model.tpa_kernel import TensorProductShape, compose_norm_rotate

            shape = TensorProductShape(
                self.heads, self.groups, self.q_rank, self.rank, self.channels, norms[0].eps
            )
            return compose_norm_rotate(factors, norms[0].weight, norms[1].weight, rotation, shape)
        a_q, a_k, a_v, b_q, b_k, b_v = factors.split([w.shape[0] for w in weights], dim=-1)
        return (
            self._compose(a_q, b_q, self.heads, self.q_rank),
            self._compose(a_k, b_k, self.groups, self.rank),
            self._compose(a_v, b_v, self.groups, self.rank),
        )

    def _compose(self, a: torch.Tensor, b: torch.Tensor, heads: int, rank: int) -> torch.Tensor:
        a = a.unflatten(-1, (heads, rank))
        b = b.unflatten(-1, (rank, self.channels))
        return torch.matmul(a, b) / rank

    def backward_dw(self) -> None:
        """Of Megatron's delayed weight gradients, which this module does not delay."""

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A sharded over heads and groups, B once: loads at another tensor-parallel size."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            dict.fromkeys(self.SHARDED, 0),
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )


class TPASelfAttention(VpmoeSelfAttention):
    """Self-attention of a local layer with TPA in place of the QKV projection."""

    def __init__(
        self,
        config: VpmoeConfig,
        submodules: SelfAttentionSubmodules,
        layer_number: int,
        attn_mask_type: AttnMaskType = AttnMaskType.causal,
        **kwargs: Any,
    ) -> None:
        if config.multi_latent_attention:
            raise ValueError("TPA and multi-latent attention exclude each other")
        super().__init__(config, submodules, layer_number, attn_mask_type, **kwargs)

    def get_query_key_value_tensors(
        self, hidden_states: torch.Tensor, key_value_states: torch.Tensor | None = None, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """query [s, b, H/TP, D], key and value [s, b, G/TP, D], after QK-norm."""
        query, key, value = apply_module(self.linear_qkv)(hidden_states)
        if self.q_layernorm is not None:
            query = apply_module(self.q_layernorm)(query)
        if self.k_layernorm is not None:
            key = apply_module(self.k_layernorm)(key)
        return query, key, value

    def _attention_inputs(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None,
        rotation: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if rotation is None or not self._fuses(hidden_states):
            return super()._attention_inputs(hidden_states, key_value_states, rotation)
        norms = (self.q_layernorm, self.k_layernorm)
        query, key, value = apply_module(self.linear_qkv)(hidden_states, norms, rotation)
        return query, key, value

    def _fuses(self, hidden_states: torch.Tensor) -> bool:
        """Whether one kernel takes the factors to attention's inputs."""
        config = self.config
        channels = config.kv_channels
        fastest = config.attention_kernel == "auto" and not config.deterministic_mode
        return (
            hidden_states.is_cuda
            and (fastest or config.attention_kernel == "triton")
            and config.position_embedding_type == "grapem"
            and not config.grapem_per_head
            and config.rotates(self.layer_number)
            and self.q_layernorm is not None
            and self.k_layernorm is not None
            and channels & (channels - 1) == 0
        )
