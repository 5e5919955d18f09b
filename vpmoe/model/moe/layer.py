"""Megatron's MoE layer where all experts are on this rank: no communication, no waiting."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from megatron.core.activations import squared_relu
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.token_dispatcher import MoETokenDispatcher

from vpmoe.megatron.moe import DispatchedMoELayer
from vpmoe.model.config import VpmoeConfig
from vpmoe.model.moe.router import routing_unsupported_reason


class LocalMoELayer(DispatchedMoELayer):
    """`MoELayer` with `LocalTokenDispatcher`; everything else, and its order, is Megatron's."""

    def __init__(
        self,
        config: VpmoeConfig,
        submodules: Any = None,
        layer_number: int | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **kwargs: Any,
    ) -> None:
        refusal = local_unsupported_reason(config)
        if refusal is not None:
            raise ValueError(f"--expert-kernel fused: {refusal}")
        super().__init__(config, submodules, layer_number, pg_collection, **kwargs)

    def make_dispatcher(self, pg_collection: ProcessGroupCollection) -> MoETokenDispatcher:
        """See `LocalTokenDispatcher`."""
        return LocalTokenDispatcher(self.config, pg_collection)


class LocalTokenDispatcher(MoETokenDispatcher):
    """Sorts tokens by expert and adds up what comes back, on one rank.

    Nothing is read on the host, so the numbers of tokens stay on the device.
    """

    def dispatch_preprocess(
        self, tokens: torch.Tensor, routing_map: torch.Tensor, probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes hidden states [s, b, hidden], choices and probabilities [s * b, experts]."""
        from vpmoe.model.moe.permutation_kernel import plan_permutation

        self.shape = tokens.shape
        self.permutation, permuted_probs = plan_permutation(
            probs, routing_map, self.config.moe_router_topk
        )
        return tokens.reshape(-1, tokens.shape[-1]), permuted_probs

    def token_dispatch(
        self, hidden_states: torch.Tensor, probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns both as they are: every expert is on this rank."""
        return hidden_states, probs

    def dispatch_postprocess(
        self, hidden_states: torch.Tensor, probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens sorted by expert [n * topk, hidden], their numbers, and their probabilities."""
        from vpmoe.model.moe.permutation_kernel import permute

        return (
            permute(hidden_states, self.permutation.positions),
            self.permutation.tokens_per_expert,
            probs,
        )

    def combine_preprocess(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Adds up each token's results: [s * b, hidden]."""
        from vpmoe.model.moe.permutation_kernel import unpermute

        return unpermute(hidden_states, self.permutation.positions)

    def token_combine(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Returns them as they are: every result is on this rank."""
        return hidden_states

    def combine_postprocess(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Restores the shape [s, b, hidden]."""
        return hidden_states.view(self.shape)


def local_unsupported_reason(config: VpmoeConfig) -> str | None:
    """Why experts cannot be computed locally in fused kernels, or None when they can."""
    expert_tp = config.expert_tensor_parallel_size
    if expert_tp is None:
        expert_tp = config.tensor_model_parallel_size
    checks = {
        "it needs a CUDA device": not torch.cuda.is_available(),
        "Triton is not installed": importlib.util.find_spec("triton") is None,
        "experts are sharded over expert-parallel ranks": config.expert_model_parallel_size > 1,
        "experts are sharded over tensor-parallel ranks": expert_tp > 1,
        "the shared expert overlaps the dispatch": config.moe_shared_expert_overlap,
        "experts have a gate": config.gated_linear_unit,
        "experts are not activated by squared ReLU": config.activation_func is not squared_relu,
    }
    reason = next((reason for reason, refused in checks.items() if refused), None)
    return reason or routing_unsupported_reason(config)
