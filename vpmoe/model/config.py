"""vpMoE's transformer configuration: Megatron's, and what Megatron has no field for."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.core.transformer.transformer_config import TransformerConfig

from vpmoe.megatron.helpers import init_method_normal
from vpmoe.megatron.marks import save_layers_separately


@dataclass
class VpmoeConfig(TransformerConfig):
    """Configuration of a vpMoE model. Every field has the name of its flag.

    Attributes:
        position_embedding_type: "grapem", "rope" (Megatron's) or "none".
        rotary_base: base of the initial geometric frequencies of GRAPE-M, and of RoPE.
        grapem_log_freq_scale: s; the parameter is phi = s ln(frequency).
        grapem_learnable_freq: False freezes phi, which makes GRAPE-M equal to RoPE.
        grapem_per_head: one set of frequencies a KV group instead of one for all heads.
        grape_a: ALiBi bias on global layers.
        grape_a_with_rotation: permits global layers that both rotate and have the bias.
        use_tpa: Tensor Product Attention on local layers.
        tpa_rank: rank of the key and value factors.
        tpa_q_rank: rank of the query factors.
        moe_router_group_score_topk: a group of experts scores the sum of this many of its best;
            None is Megatron's `moe_router_topk // moe_router_group_topk`, 2 is DeepSeek-V3's.
        attention_kernel: "auto", "eager", "triton" or "te".
        expert_kernel: "auto", "sequential", "grouped" or "fused".
        loss_kernel: "full" or "chunked"; "auto" until `kernels.resolve_kernels`.
    """

    position_embedding_type: str = "none"
    rotary_base: int = 10000
    grapem_log_freq_scale: float = 16.0
    grapem_learnable_freq: bool = True
    grapem_per_head: bool = False
    grape_a: bool = False
    grape_a_with_rotation: bool = False
    use_tpa: bool = False
    tpa_rank: int | None = None
    tpa_q_rank: int | None = None
    moe_router_group_score_topk: int | None = None
    attention_kernel: str = "auto"
    expert_kernel: str = "auto"
    loss_kernel: str = "full"

    def __post_init__(self) -> None:
        # Every matrix is drawn alike; Megatron scales projections into the residual stream down.
        self.output_layer_init_method = init_method_normal(self.init_method_std)
        super().__post_init__()
        # Local and global layers hold different weights: none is a slice of a common stack.
        save_layers_separately(self)

    def rotates(self, layer_number: int) -> bool:
        """Whether the layer (counted from 1) rotates its queries and keys."""
        if self.position_embedding_type not in ("grapem", "rope"):
            return False
        # Megatron expands --no-rope-freq to a list: 1 for a layer without rotation.
        return not (self.no_rope_freq and self.no_rope_freq[layer_number - 1])
