"""Bugs in routing and experts."""

from __future__ import annotations

from typing import Any

from vpmoe.cases.faults.planting import (
    Planted,
    arguments,
    fault,
    keywords,
    patched,
    result,
    rounded,
)
from vpmoe.megatron import points

_GROUPS = "vpmoe.model.moe.groups"


@fault(
    "topk-scaling-missing", "experts", "router", "moe_router_topk_scaling_factor ignored", gpu=True
)
def topk_scaling_missing() -> Planted:
    """Routing weights are not scaled by 2.5."""
    return keywords(*points.ROUTING.place, scaling_factor=None)


@fault(
    "router-groups-ignored",
    "experts",
    "router",
    "top-k over all experts, not within groups",
    gpu=True,
)
def router_groups_ignored() -> Planted:
    """Experts are chosen without their groups."""
    return keywords(*points.ROUTING.place, num_groups=None, group_topk=None)


@fault(
    "router-groups-by-one",
    "experts",
    "router",
    "a group's score is its best expert, with sigmoid scores as with softmax ones",
    case="tiny_groups_of_two",
)
def router_groups_by_one() -> Planted:
    """Groups are scored by their best expert, not by their best two."""

    def change(*given: Any) -> tuple[Any, ...]:
        return *given[:-1], 1

    return arguments(_GROUPS, "choose_in_groups", change)


@fault(
    "router-groups-interleaved",
    "experts",
    "router",
    "experts dealt to groups in turn, not side by side",
    case="tiny_groups_of_two",
)
def router_groups_interleaved() -> Planted:
    """Expert e is taken to be in group e modulo the groups."""

    def wrap(original: Any) -> Any:
        def choose(scores: Any, topk: int, groups: int, group_topk: int, best: int) -> Any:
            tokens, experts = scores.shape
            dealt = scores.view(tokens, -1, groups).transpose(1, 2).reshape(tokens, experts)
            values, places = original(dealt, topk, groups, group_topk, best)
            size = experts // groups
            return values, places % size * groups + places // size

        return choose

    return patched(_GROUPS, "choose_in_groups", wrap)


@fault(
    "router-groups-by-two",
    "experts",
    "router",
    "another model's score of a group, where groups limit nothing",
    case="tiny_groups",
)
def router_groups_by_two() -> Planted:
    """Groups are scored by their best two experts, not by their best."""

    def wrap(original: Any) -> Any:
        from vpmoe.model.moe.groups import choose_in_groups

        def choose(scores: Any, topk: int, num_groups: int, group_topk: int, **sizes: int) -> Any:
            return choose_in_groups(scores, topk, num_groups, group_topk, 2)

        return choose

    return patched(*points.GROUP_LIMITED.place, wrap)


@fault(
    "router-group-too-few",
    "experts",
    "router",
    "an off-by-one in the number of groups",
    case="tiny_groups",
)
def router_group_too_few() -> Planted:
    """A token may use three groups, not four."""
    return keywords(*points.ROUTING.place, group_topk=3)


@fault("router-top-1", "experts", "router", "one expert too few")
def router_top_1() -> Planted:
    """A token is routed to one expert."""

    def wrap(original: Any) -> Any:
        return lambda logits, topk, **kwargs: original(logits, topk - 1, **kwargs)

    return patched(*points.ROUTING.place, wrap)


@fault(
    "router-in-bf16",
    "numerics",
    "router",
    "moe_router_dtype ignored (https://github.com/vllm-project/vllm/pull/14027)",
)
def router_in_bf16() -> Planted:
    """Router logits are rounded to bf16."""
    return result(*points.GATING.place, rounded)


@fault("expert-bias-sign", "experts", "router", "overloaded experts made more likely", steps=2)
def expert_bias_sign() -> Planted:
    """The balancing bias moves the wrong way."""

    def wrap(original: Any) -> Any:
        def get_updated_expert_bias(tokens: Any, bias: Any, rate: float, **groups: Any) -> Any:
            return original(tokens, bias, -rate, **groups)

        return get_updated_expert_bias

    return patched(*points.UPDATE_EXPERT_BIAS.place, wrap)


@fault("shared-expert-off", "experts", "mlp", "a shared expert that is gated away", gpu=True)
def shared_expert_off() -> Planted:
    """The shared expert contributes nothing."""
    return result(
        *points.SHARED_EXPERT.place,
        lambda output: output * 0.0,
    )


@fault("dense-layer-misplaced", "experts", "mlp", "--moe-layer-freq counted from another layer")
def dense_layer_misplaced() -> Planted:
    """The dense layer is the last one, not the first."""

    def wrap(original: Any) -> Any:
        return lambda config, number: original(config, config.num_layers + 1 - number)

    return patched("vpmoe.model.layer_specs", "is_moe_layer", wrap)


@fault("expert-bias-rate-tenfold", "experts", "expert_bias", "a rate of another schedule")
def expert_bias_rate_tenfold() -> Planted:
    """The balancing bias moves ten times as far."""

    def wrap(original: Any) -> Any:
        def get_updated_expert_bias(tokens: Any, bias: Any, rate: float, **groups: Any) -> Any:
            return original(tokens, bias, 10 * rate, **groups)

        return get_updated_expert_bias

    return patched(*points.UPDATE_EXPERT_BIAS.place, wrap)


@fault("router-softmax-for-sigmoid", "experts", "router", "the default score function")
def router_softmax_for_sigmoid() -> Planted:
    """Experts are scored by a softmax."""
    return keywords(*points.ROUTING.place, score_function="softmax", expert_bias=None)


@fault("router-weights-detached", "experts", "mlp", "routing weights outside the graph")
def router_weights_detached() -> Planted:
    """The router learns from its auxiliary loss alone."""

    def change(found: Any) -> Any:
        probabilities, chosen = found
        return probabilities.detach() + 0.0 * probabilities, chosen

    return result(*points.ROUTING.place, change)


@fault(
    "router-bias-in-the-weights",
    "experts",
    "router",
    "a balancing bias that weighs outputs",
    steps=2,
)
def router_bias_in_the_weights() -> Planted:
    """The balancing bias is added to the logits, and so weighs the experts' outputs too."""

    def wrap(original: Any) -> Any:
        def route(logits: Any, topk: int, **kwargs: Any) -> Any:
            bias = kwargs.pop("expert_bias")
            return original(logits + bias, topk, expert_bias=0.0 * bias, **kwargs)

        return route

    return patched(*points.ROUTING.place, wrap)


@fault("auxiliary-loss-doubled", "experts", "mlp", "a coefficient applied twice")
def auxiliary_loss_doubled() -> Planted:
    """The load balancing loss counts twice."""
    return result(*points.BALANCE_COEFFICIENT.place, lambda coefficient: 2 * coefficient)


@fault("last-token-dropped", "experts", "router", "a capacity that drops tokens")
def last_token_dropped() -> Planted:
    """The last token of a micro-batch gets nothing of its experts."""

    def change(found: Any) -> Any:
        probabilities, chosen = found
        kept = probabilities.new_ones(probabilities.shape[0], 1)
        kept[-1] = 0.0
        return probabilities * kept, chosen

    return result(*points.ROUTING.place, change)


@fault(
    "experts-in-another-order", "experts", "experts", "tokens sorted by another key than weights"
)
def experts_in_another_order() -> Planted:
    """Tokens of the first expert meet the last one's weights."""

    def wrap(original: Any) -> Any:
        def forward(self: Any, hidden: Any, counts: Any, weights: Any) -> Any:
            right = self.local_experts
            self.__dict__["local_experts"] = list(right)[::-1]
            try:
                return original(self, hidden, counts, weights)
            finally:
                del self.__dict__["local_experts"]

        return forward

    return patched(*points.EXPERTS.place, wrap)


@fault("shared-expert-halved", "experts", "mlp", "a width taken for one of two shared experts")
def shared_expert_halved() -> Planted:
    """The shared expert contributes half."""
    return result(
        *points.SHARED_EXPERT.place,
        lambda output: output * 0.5,
    )


@fault("relu-not-squared", "experts", "mlp", "another activation")
def relu_not_squared() -> Planted:
    """Feed-forwards use a plain ReLU."""

    def wrap(original: Any) -> Any:
        import torch

        return torch.nn.functional.relu

    return patched(*points.SQUARED_RELU.place, wrap)
