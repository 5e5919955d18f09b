"""GRAPE position encodings: multiplicative (GRAPE-M, learnable RoPE) and additive (GRAPE-A, ALiBi).

GRAPE-M rotates d/2 commuting canonical planes (i, i + d/2) by position * omega_i with learnable
log-frequencies phi_i = s ln(omega_i); frozen at omega_i = base^(-2i/d) it is RoPE (Su et al.,
2021). GRAPE-A here is its ALiBi special case (Press et al., 2022): the logit of query i and key j
gets -m_h (i - j).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.module import MegatronModule

from vpmoe.megatron.checkpoint import (
    ensure_metadata_has_dp_cp_group,
    make_sharded_tensors_for_checkpoint,
)
from vpmoe.megatron.helpers import get_pg_rank, get_pg_size
from vpmoe.megatron.marks import mark_copy_of_stage
from vpmoe.model.config import VpmoeConfig


class GrapeM(MegatronModule):
    """The frequencies of GRAPE-M, shared by all rotating layers of a model.

    `phi` is a 1-D fp32 parameter whatever the model's dtype, since a round trip through bf16 moves
    a frequency by up to 2.9 %: [d/2], or with `grapem_per_head` [G/TP * d/2], G the number of KV
    groups. Tensor-parallel ranks see it from their own heads only, so its gradient is summed over
    them. Every pipeline stage holds a copy: `pipeline_parallel` makes Megatron sum its gradient
    over the stages, `shared` counts it once in the gradient norm, and the first stage saves it.

    Args:
        config: vpMoE's configuration.
        pg_collection: process groups; `tp` and `pp` are used.
        vp_stage: the chunk of a virtual pipeline, each of which holds a copy.
    """

    def __init__(
        self,
        config: VpmoeConfig,
        pg_collection: ProcessGroupCollection,
        vp_stage: int | None = None,
    ) -> None:
        super().__init__(config=config)
        self.tp_group = pg_collection.tp
        stages = get_pg_size(pg_collection.pp)
        # 0 is the copy that is saved and counted.
        self.copy = get_pg_rank(pg_collection.pp) + stages * (vp_stage or 0)
        self.scale = config.grapem_log_freq_scale
        self.per_head = config.grapem_per_head
        assert config.kv_channels is not None
        self.planes = config.kv_channels // 2
        phi = initial_log_frequencies(config.kv_channels, config.rotary_base, self.scale)
        if self.per_head:
            assert config.num_query_groups is not None
            phi = phi.repeat(config.num_query_groups // get_pg_size(self.tp_group))
        self.phi = torch.nn.Parameter(phi, requires_grad=config.grapem_learnable_freq)
        if self.per_head:
            set_tensor_model_parallel_attributes(self.phi, is_parallel=True, dim=0, stride=1)
        if stages > 1:
            mark_copy_of_stage(self.phi, config, counted=self.copy == 0)

    def forward(self, position_ids: torch.Tensor | None) -> torch.Tensor:
        """Computes the rotations.

        Args:
            position_ids: [b, s], restarting where a document starts.

        Returns:
            cos and sin of the angles, stacked, fp32 [2, s, b, 1 or G/TP, d/2].

        Raises:
            ValueError: there are no positions.
        """
        if position_ids is None:
            raise ValueError("GRAPE-M needs position_ids on every pipeline stage")
        phi = self.phi
        if not self.per_head:
            phi = copy_to_tensor_model_parallel_region(phi, self.tp_group)
        angles = rotation_angles(phi.view(-1, self.planes), position_ids, self.scale)
        return torch.stack((angles.cos(), angles.sin()))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Moves to another device, but never to fewer than 32 bits."""

        def keep_precision(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            return result if result.dtype.itemsize >= 4 else tensor.to(result.device)

        return super()._apply(keep_precision, recurse)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """One copy of phi in the checkpoint, from the first pipeline stage."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        state: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            {"phi": self.phi},
            prefix,
            {"phi": 0} if self.per_head else {},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )
        for tensor in state.values():
            tensor.replica_id = (self.copy, *tensor.replica_id[1:])
        return state


def initial_log_frequencies(channels: int, base: float, scale: float) -> torch.Tensor:
    """phi_i = scale * ln(base^(-2i/channels)), i < channels/2, fp32 [channels/2]."""
    exponent = torch.arange(0, channels, 2, dtype=torch.float64) / channels
    return (-scale * math.log(base) * exponent).float()


def rotation_angles(phi: torch.Tensor, position_ids: torch.Tensor, scale: float) -> torch.Tensor:
    """Angles position * exp(phi / scale).

    Args:
        phi: [g, d/2], fp32 or fp64.
        position_ids: [b, s] integers.
        scale: s of phi = s ln(frequency).

    Returns:
        [s, b, g, d/2] in phi's dtype.
    """
    omega = torch.exp(phi / scale)
    return position_ids.t().to(phi.dtype)[:, :, None, None] * omega


def rotate(x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """Rotates the planes (i, i + d/2) by +angle, Megatron's sign, in fp32.

    Args:
        x: queries or keys [s, b, h, d].
        cos_sin: [2, s, b, g, d/2]; h is a multiple of g, consecutive heads share a set.

    Returns:
        [s, b, h, d] in x's dtype.
    """
    cos, sin = cos_sin
    if cos.shape[2] not in (1, x.shape[2]):
        cos, sin = (t.repeat_interleave(x.shape[2] // t.shape[2], dim=2) for t in (cos, sin))
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x.dtype)


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """ALiBi's slopes m_h = 2^(-8h/H), h = 1..H (Press et al., 2022).

    For H that is no power of two: the slopes of the closest lower power, then every other slope of
    twice that power.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * h / power) for h in range(1, power + 1)]
    slopes += [2.0 ** (-8.0 * h / (2 * power)) for h in range(1, 2 * power + 1, 2)]
    return tuple(slopes[:heads])
