"""Bugs in routing and experts."""

from __future__ import annotations

from typing import Any

from validation.cases.vpmoe.faults.planting import Planted, fault, keywords, patched, result

_ROUTER = "megatron.core.transformer.moe.router"


@fault("topk-scaling-missing", "experts", "router", "moe_router_topk_scaling_factor ignored")
def topk_scaling_missing() -> Planted:
    """Routing weights are not scaled by 2.5."""
    return keywords(_ROUTER, "topk_routing_with_score_function", scaling_factor=None)


@fault("router-groups-ignored", "experts", "router", "top-k over all experts, not within groups")
def router_groups_ignored() -> Planted:
    """Experts are chosen without their groups."""
    return keywords(_ROUTER, "topk_routing_with_score_function", num_groups=None, group_topk=None)


@fault("router-top-1", "experts", "router", "one expert too few")
def router_top_1() -> Planted:
    """A token is routed to one expert."""

    def wrap(original: Any) -> Any:
        return lambda logits, topk, **kwargs: original(logits, topk - 1, **kwargs)

    return patched(_ROUTER, "topk_routing_with_score_function", wrap)


@fault("router-in-bf16", "numerics", "router", "moe_router_dtype ignored")
def router_in_bf16() -> Planted:
    """Router logits are rounded to bf16."""
    return result(_ROUTER, "TopKRouter.gating", lambda logits: logits.bfloat16().to(logits.dtype))


@fault("expert-bias-sign", "experts", "router", "overloaded experts made more likely", steps=2)
def expert_bias_sign() -> Planted:
    """The balancing bias moves the wrong way."""

    def wrap(original: Any) -> Any:
        def get_updated_expert_bias(tokens: Any, bias: Any, rate: float, **groups: Any) -> Any:
            return original(tokens, bias, -rate, **groups)

        return get_updated_expert_bias

    return patched(
        "megatron.core.distributed.finalize_model_grads", "get_updated_expert_bias", wrap
    )


@fault("shared-expert-off", "experts", "mlp", "a shared expert that is gated away")
def shared_expert_off() -> Planted:
    """The shared expert contributes nothing."""
    return result(
        "megatron.core.transformer.moe.shared_experts",
        "SharedExpertMLP.forward",
        lambda output: output * 0.0,
    )


@fault("dense-layer-misplaced", "experts", "mlp", "--moe-layer-freq counted from another layer")
def dense_layer_misplaced() -> Planted:
    """The dense layer is the last one, not the first."""

    def wrap(original: Any) -> Any:
        return lambda config, number: original(config, config.num_layers + 1 - number)

    return patched("vpmoe.model.layer_specs", "is_moe_layer", wrap)
