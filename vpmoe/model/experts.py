"""Routed experts in one grouped matrix product, over stacked weights."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from megatron.core.transformer.module import MegatronModule
from torch.nn import functional

from vpmoe.megatron.checkpoint import ensure_metadata_has_dp_cp_group
from vpmoe.megatron.helpers import divide, get_pg_rank, get_pg_size
from vpmoe.megatron.marks import mark_expert
from vpmoe.model.config import VpmoeConfig


class GroupedExperts(MegatronModule):
    """The experts of one rank with their weights stacked.

    Takes the place of Megatron's `SequentialMLP`: same function, same initial weights and the same
    checkpoint, so that one is saved with the one and loaded with the other. `weight1`
    [E/EP, ffn/TP, hidden] and `weight2` [E/EP, hidden, ffn/TP] have rows as outputs, one matrix an
    expert.

    Args:
        num_local_experts: experts on this rank, E/EP.
        config: vpMoE's configuration.
        pg_collection: process groups; `ep`, `expt_tp` and `expt_dp` are used.
        name: of Megatron's interface.

    Raises:
        ValueError: the configuration has what grouped experts do not compute.
    """

    def __init__(
        self,
        num_local_experts: int,
        config: VpmoeConfig,
        pg_collection: ProcessGroupCollection,
        name: str | None = None,
    ) -> None:
        super().__init__(config=config)
        del name
        refusal = grouping_unsupported_reason(config)
        if refusal is not None:
            raise ValueError(
                f"--expert-kernel {config.expert_kernel}: {refusal}; use --expert-kernel sequential"
            )
        assert config.moe_ffn_hidden_size is not None
        self.num_local_experts = num_local_experts
        self.ep_group, self.tp_group = pg_collection.ep, pg_collection.expt_tp
        self.dp_group = pg_collection.expt_dp
        width = divide(config.moe_ffn_hidden_size, get_pg_size(self.tp_group))
        shape = (num_local_experts, width, config.hidden_size)
        self.weight1 = self._weight(shape, partition_dim=1)
        self.weight2 = self._weight((shape[0], shape[2], shape[1]), partition_dim=2)

    def _weight(self, shape: tuple[int, int, int], partition_dim: int) -> torch.nn.Parameter:
        weight = torch.nn.Parameter(torch.empty(shape, dtype=self.config.params_dtype))
        set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=partition_dim, stride=1)
        mark_expert(weight, self.config.expert_model_parallel_size > 1)
        return weight

    def forward(
        self,
        permuted_local_hidden_states: torch.Tensor,
        tokens_per_expert: torch.Tensor,
        permuted_probs: torch.Tensor,
    ) -> tuple[torch.Tensor, None]:
        """Runs every expert on its tokens.

        Args:
            permuted_local_hidden_states: [n, hidden], sorted by expert.
            tokens_per_expert: [E/EP] integers that sum to n.
            permuted_probs: [n], the weight of each token's expert.

        Returns:
            [n, hidden], weighed (a partial sum under expert tensor parallelism), and no bias.
        """
        x = permuted_local_hidden_states
        ends = tokens_per_expert.to(device=x.device, dtype=torch.int32).cumsum(0, dtype=torch.int32)
        hidden = grouped_linear(x, self.weight1, ends)
        if self.config.expert_kernel == "fused":
            from vpmoe.model.moe.permutation_kernel import weighted_squared_relu

            hidden = weighted_squared_relu(hidden, permuted_probs)
        else:
            hidden = self.config.activation_func(hidden)
            hidden = (hidden * permuted_probs.unsqueeze(-1)).to(x.dtype)
        return grouped_linear(hidden, self.weight2, ends), None

    def backward_dw(self) -> None:
        """Of Megatron's delayed weight gradients, which this module does not delay."""

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The entries of `SequentialMLP`: one tensor over all experts and linear layers."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        if metadata.get("singleton_local_shards", False):
            raise ValueError("singleton_local_shards is not supported by grouped experts")
        axes = len(sharded_offsets)
        state: dict[str, Any] = {}
        for attribute, linear in (("weight1", "linear_fc1"), ("weight2", "linear_fc2")):
            weight = getattr(self, attribute)
            # The parameter itself, since the optimizer finds its state by identity.
            state[f"{prefix}{attribute}"] = ShardedTensor.from_rank_offsets(
                f"{prefix}experts.{linear}.weight",
                weight,
                *sharded_offsets,
                (axes, get_pg_rank(self.ep_group), get_pg_size(self.ep_group)),
                (
                    axes + weight.partition_dim,
                    get_pg_rank(self.tp_group),
                    get_pg_size(self.tp_group),
                ),
                replica_id=(0, 0, get_pg_rank(self.dp_group)),
                prepend_axis_num=axes,
            )
            # Megatron's linear layers save an empty object each, and insist on loading it.
            experts = get_pg_size(self.ep_group) * self.num_local_experts
            first = get_pg_rank(self.ep_group) * self.num_local_experts
            for index in range(self.num_local_experts):
                state[f"{prefix}{linear}._extra_state{index}"] = ShardedObject(
                    f"{prefix}experts.{linear}._extra_state",
                    None,
                    (*(size for _, _, size in sharded_offsets), experts),
                    (*(offset for _, offset, _ in sharded_offsets), first + index),
                    replica_id=(0, get_pg_rank(self.tp_group), get_pg_rank(self.dp_group)),
                )
        return state

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in [n for n in state_dict if n.startswith(prefix) and "._extra_state" in n]:
            del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def grouping_unsupported_reason(config: VpmoeConfig) -> str | None:
    """Why the routed experts of a configuration cannot be `GroupedExperts`, or None."""
    if config.gated_linear_unit:
        return "grouped experts have no gate (--swiglu)"
    if config.add_bias_linear:
        return "grouped experts have no bias (--disable-bias-linear leaves it out)"
    if config.moe_apply_probs_on_input:
        return "grouped experts weigh their outputs, not their inputs (--moe-apply-probs-on-input)"
    return None


def grouped_linear(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Applies each expert's matrix to its rows of x.

    Args:
        x: [n, in], sorted by expert.
        weight: [E, out, in].
        ends: int32 [E], one past each expert's last row.

    Returns:
        [n, out].
    """
    return functional.grouped_mm(x, weight.transpose(-2, -1), offs=ends)
