"""Megatron's top-k router with routing in one kernel."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region
from megatron.core.transformer.moe.router import TopKRouter

from vpmoe.megatron.moe import switch_load_balancing_loss_func
from vpmoe.model.config import VpmoeConfig
from vpmoe.model.moe.groups import experts_that_score
from vpmoe.model.moe.routing_kernel import RoutingRule, route


class FusedRouter(TopKRouter):
    """`TopKRouter` for sigmoid scores and the sequence-level balancing loss.

    Scores, choices, probabilities, losses, expert bias and logged metrics are Megatron's; ties go
    to the lower expert. The logits are products of the model's bf16 numbers added up in fp32, and
    their gradient, fp32, is multiplied as two bf16 numbers, which keep 16 of its 24 bits.

    Args:
        config: vpMoE's configuration; see `routing_unsupported_reason` for what is taken.
        pg_collection: process groups.
        is_mtp_layer: of Megatron's interface.

    Raises:
        ValueError: the configuration has what the fused routing does not compute.
    """

    def __init__(
        self,
        config: VpmoeConfig,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
    ) -> None:
        refusal = routing_unsupported_reason(config)
        if refusal is not None:
            raise ValueError(f"fused routing: {refusal}")
        super().__init__(config, pg_collection, is_mtp_layer)
        groups, group_topk = config.moe_router_num_groups, config.moe_router_group_topk
        self.rule = RoutingRule(
            topk=config.moe_router_topk,
            groups=(groups or 1) if group_topk else 1,
            group_topk=group_topk or 1,
            group_score_topk=experts_that_score(
                config.moe_router_topk, group_topk or 1, config.moe_router_group_score_topk
            ),
            scaling=config.moe_router_topk_scaling_factor or 1.0,
        )

    def gating(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 Megatron's name
        """Logits fp32 [s, b, experts] of hidden states [s, b, hidden]."""
        if not input.is_cuda or input.dtype == torch.float32:
            logits: torch.Tensor = super().gating(input)
            return logits
        logits = _Gating.apply(input, self.weight)
        return logits

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Chooses experts.

        Args:
            logits: fp32 [s, b, experts].
            padding_mask: refused.

        Returns:
            Probabilities fp32 and choices bool, [s * b, experts].

        Raises:
            NotImplementedError: there is a padding mask.
        """
        if padding_mask is not None:
            raise NotImplementedError("fused routing takes no padding mask")
        balanced = self.training and torch.is_grad_enabled() and self.is_aux_loss_enabled()
        probs, choices, load, *sums = route(logits, self.expert_bias, self.rule, balanced)
        if balanced:
            probs = self._balance(probs, *logits.shape[:2], *sums)
        if self.enable_expert_bias and torch.is_grad_enabled():
            self.local_tokens_per_expert += load
        return probs, choices

    def _balance(
        self,
        probs: torch.Tensor,
        length: int,
        batch: int,
        score_sums: torch.Tensor,
        count_sums: torch.Tensor,
    ) -> torch.Tensor:
        """Attaches Megatron's sequence-level loss, from sums over the sequences' tokens."""
        coefficient = self.get_aux_loss_coeff("seq_aux_loss")
        counts = reduce_from_tensor_model_parallel_region(count_sums.view(-1), self.tp_cp_group)
        # One row of sums in the place of rows of tokens.
        loss = switch_load_balancing_loss_func(
            probs=score_sums.view(1, -1),
            tokens_per_expert=counts,
            total_num_tokens=length * self.tp_cp_group.size(),
            topk=self.topk,
            num_experts=self.config.num_moe_experts,
            moe_aux_loss_coeff=coefficient,
        )
        attached: torch.Tensor = self.attach_and_log_load_balancing_loss(
            probs,
            coefficient,
            loss / batch,
            "seq_load_balancing_loss",
            self.tp_cp_group,
            valid_token_count=length * batch,
        )
        return attached


class _Gating(torch.autograd.Function):
    """x W^T with fp32 results for half-precision x and W."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        rows = x.reshape(-1, x.shape[-1])
        return torch.mm(rows, weight.t(), out_dtype=torch.float32).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight = ctx.saved_tensors
        rows, grad = x.reshape(-1, x.shape[-1]), grads[0].reshape(-1, weight.shape[0])
        high = grad.to(x.dtype)
        both = torch.cat((high, (grad - high).to(x.dtype)), dim=1)
        d_x = (both @ torch.cat((weight, weight))).view_as(x)
        d_weight = torch.mm(both.t(), rows, out_dtype=torch.float32)
        return d_x, d_weight.view(2, *weight.shape).sum(0).to(weight.dtype)


def routing_unsupported_reason(config: VpmoeConfig) -> str | None:
    """Why `FusedRouter` cannot route as configured, or None when it can."""
    experts = config.num_moe_experts or 0
    aux_kinds = config.moe_router_load_balancing_type
    kinds = {aux_kinds} if isinstance(aux_kinds, str) else set(aux_kinds)
    checks = {
        f"{experts} experts are not a power of two": experts < 2 or bool(experts & (experts - 1)),
        f"scores are {config.moe_router_score_function}, not sigmoid": (
            config.moe_router_score_function != "sigmoid"
        ),
        "the router's dtype is not fp32": config.moe_router_dtype != "fp32",
        f"load balancing is {aux_kinds}, not seq_aux_loss or none": not kinds
        <= {"seq_aux_loss", "none"},
        "it has a capacity": config.moe_expert_capacity_factor is not None,
        "it has a z-loss": config.moe_z_loss_coeff is not None,
        "it replays routes": bool(getattr(config, "moe_enable_routing_replay", False)),
        "its linear layers have a bias": config.add_bias_linear,
        "groups are not a power of two": bool(
            config.moe_router_group_topk
            and (config.moe_router_num_groups or 1) & ((config.moe_router_num_groups or 1) - 1)
        ),
    }
    return next((reason for reason, refused in checks.items() if refused), None)
