"""Megatron's mixture of experts as vpMoE extends it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.router import TopKRouter

from vpmoe.megatron.contract import Contract, Exists, Reads, Takes

_MOE = "megatron.core.transformer.moe"
_ROUTER = f"{_MOE}.router:TopKRouter"
_CHOICE = ("scores", "topk", "num_groups", "group_topk")

CHOICE = Contract(
    "choice of experts",
    "`--moe-router-group-score-topk` replaces the choice of experts through the router's "
    "`router_replay`, whatever stands there: Megatron asks its `get_replay_topk` for the choice. "
    "Not asked, groups would be scored Megatron's way in silence.",
    "See where `topk_routing_with_score_function` of this version lets another choose.",
    (
        Takes(f"{_MOE}.router_replay:RouterReplay.get_replay_topk", _CHOICE),
        Reads(
            f"{_MOE}.moe_utils:topk_routing_with_score_function",
            names=("router_replay", "get_replay_topk"),
        ),
        Reads(f"{_ROUTER}.routing", names=("router_replay", "topk_routing_with_score_function")),
        Reads(f"{_ROUTER}.__init__", names=("router_replay",)),
    ),
)

ROUTER = Contract(
    "router",
    "`--expert-kernel fused` replaces `TopKRouter`'s gating and routing, and attaches and logs the "
    "balancing loss with Megatron's functions.",
    "Compare `TopKRouter` of this version with vpmoe/model/moe/router.py.",
    (
        Takes(f"{_ROUTER}.__init__", ("config", "pg_collection", "is_mtp_layer")),
        Takes(f"{_ROUTER}.gating", ("input",)),
        Takes(f"{_ROUTER}.routing", ("logits", "padding_mask")),
        Takes(f"{_ROUTER}.is_aux_loss_enabled"),
        Takes(f"{_ROUTER}.get_aux_loss_coeff", ("aux_loss_type",)),
        Takes(
            f"{_ROUTER}.attach_and_log_load_balancing_loss",
            ("activation", "aux_loss_coeff", "aux_loss", "aux_loss_name", "reduce_group"),
            ("valid_token_count",),
        ),
        Takes(
            f"{_MOE}.moe_utils:switch_load_balancing_loss_func",
            keywords=(
                "probs",
                "tokens_per_expert",
                "total_num_tokens",
                "topk",
                "num_experts",
                "moe_aux_loss_coeff",
            ),
        ),
        Reads(
            f"{_ROUTER}.__init__",
            names=("topk", "enable_expert_bias", "local_tokens_per_expert"),
        ),
        Reads(f"{_ROUTER}._apply_seq_aux_loss", names=("seq_load_balancing_loss", "tp_cp_group")),
    ),
)

DISPATCHER = Contract(
    "dispatch of tokens",
    "`--expert-kernel fused` puts its own dispatcher into `MoELayer.token_dispatcher`, and the "
    "layer calls six methods of it.",
    "Compare `MoELayer` of this version with vpmoe/model/moe/layer.py.",
    (
        Takes(
            f"{_MOE}.moe_layer:MoELayer.__init__",
            ("config", "submodules", "layer_number", "pg_collection"),
        ),
        Reads(
            f"{_MOE}.moe_layer:MoELayer.preprocess",
            names=("token_dispatcher", "dispatch_preprocess"),
        ),
        Reads(f"{_MOE}.moe_layer:MoELayer.dispatch", names=("token_dispatch",)),
        Reads(
            f"{_MOE}.moe_layer:MoELayer.routed_experts_compute",
            names=("dispatch_postprocess", "combine_preprocess"),
        ),
        Reads(f"{_MOE}.moe_layer:MoELayer.combine", names=("token_combine",)),
        Reads(f"{_MOE}.moe_layer:MoELayer.postprocess", names=("combine_postprocess",)),
        Takes(f"{_MOE}.token_dispatcher:MoETokenDispatcher.__init__", ("config", "pg_collection")),
    ),
)

FEED_FORWARD = Contract(
    "feed-forward modules",
    "vpMoE's layer specs build Megatron's dense, routed and shared feed-forwards, and its grouped "
    "experts write the checkpoint entries of `SequentialMLP`.",
    "See how `moe_module_specs.py` and `gpt_layer_specs.py` of this version build them.",
    (
        Takes("megatron.core.transformer.mlp:MLP.as_mlp_submodule", keywords=("submodules",)),
        Takes(
            f"{_MOE}.experts:SequentialMLP",
            ("num_local_experts", "config", "submodules"),
            ("pg_collection",),
        ),
        Takes(
            f"{_MOE}.shared_experts:SharedExpertMLP",
            ("config", "submodules", "gate"),
            ("pg_collection",),
        ),
        Takes(f"{_MOE}.moe_layer:MoESubmodules", keywords=("experts", "shared_experts", "router")),
        Takes(
            f"{_MOE}.experts:SequentialMLP.forward",
            ("permuted_local_hidden_states", "tokens_per_expert", "permuted_probs"),
        ),
        Takes(f"{_MOE}.experts:SequentialMLP.sharded_state_dict", ("prefix", "sharded_offsets")),
    ),
)

AUXILIARY_LOSS = Contract(
    "scale of the routers' losses",
    "The case `laws` scales routers' losses with the main loss and sets the scale back.",
    "See how `MoEAuxLossAutoScaler` of this version keeps its scale.",
    (
        Exists(f"{_MOE}.moe_utils:MoEAuxLossAutoScaler.main_loss_backward_scale"),
        Takes(f"{_MOE}.moe_utils:MoEAuxLossAutoScaler.set_loss_scale", ("scale",)),
    ),
)

METRICS = Contract(
    "routers' losses of a step",
    "The observation of a run puts a tracker of its own in the place of Megatron's, and reads a "
    "step's losses by layer when they are cleared.",
    "See how `moe_logging.py` of this version tracks routers' losses.",
    (
        Takes(f"{_MOE}.moe_logging:get_moe_metrics_tracker"),
        Takes(f"{_MOE}.moe_logging:set_moe_metrics_tracker", ("tracker",)),
        Exists(f"{_MOE}.moe_logging:MoEMetricsTracker.metrics"),
        Takes(f"{_MOE}.moe_logging:MoEMetricsTracker.clear"),
        Reads(f"{_MOE}.moe_logging:MoEMetricsTracker.report", names=("clear",)),
        Reads(f"{_MOE}.moe_logging:MoEMetricsTracker.record", names=("values", "layer_number")),
    ),
)

CONTRACTS = (CHOICE, ROUTER, DISPATCHER, FEED_FORWARD, AUXILIARY_LOSS, METRICS)

switch_load_balancing_loss_func = ROUTER.take("switch_load_balancing_loss_func")


class ChoosingRouter(TopKRouter):
    """`TopKRouter` whose choice of experts is `choose`."""

    def __init__(
        self,
        config: Any,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
    ) -> None:
        super().__init__(config, pg_collection, is_mtp_layer)
        CHOICE.check()
        # Megatron asks whatever is here for the choice, in the place of its own.
        self.router_replay = _Choice(self)

    def choose(
        self, scores: torch.Tensor, topk: int, groups: int, group_topk: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Chooses experts within groups.

        Args:
            scores: [tokens, experts].
            topk: experts of a token.
            groups: number of groups.
            group_topk: groups of a token.

        Returns:
            Scores and numbers of the chosen experts, [tokens, topk].

        Raises:
            NotImplementedError: the subclass does not define it.
        """
        raise NotImplementedError


class _Choice:
    """What `topk_routing_with_score_function` calls for the choice of experts."""

    def __init__(self, router: ChoosingRouter) -> None:
        self._choose = router.choose
        self.layer_number: int | None = None  # set by the router

    def get_replay_topk(
        self,
        scores: torch.Tensor,
        topk: int,
        num_groups: int | None,
        group_topk: int | None,
        compute_topk: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns scores and numbers of the chosen experts, [tokens, topk].

        `compute_topk` is Megatron's own choice, taken where no groups are asked for.
        """
        if not num_groups or not group_topk:
            chosen: tuple[torch.Tensor, torch.Tensor] = compute_topk(scores, topk)
            return chosen
        return self._choose(scores, topk, num_groups, group_topk)


class DispatchedMoELayer(MoELayer):
    """`MoELayer` with a dispatcher of one's own; everything else, and its order, is Megatron's."""

    def __init__(
        self,
        config: Any,
        submodules: Any = None,
        layer_number: int | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, submodules, layer_number, pg_collection, **kwargs)
        DISPATCHER.check()
        if pg_collection is None:
            pg_collection = ProcessGroupCollection.use_mpu_process_groups()
        self.token_dispatcher = self.make_dispatcher(pg_collection)

    def make_dispatcher(self, pg_collection: ProcessGroupCollection) -> Any:
        """The dispatcher, a `MoETokenDispatcher`."""
        raise NotImplementedError


@contextmanager
def auxiliary_loss_scale(scale: float) -> Iterator[None]:
    """Weighs the routers' losses by `scale` for the length of the context."""
    AUXILIARY_LOSS.check()
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    before = MoEAuxLossAutoScaler.main_loss_backward_scale
    MoEAuxLossAutoScaler.set_loss_scale(torch.tensor(scale))
    try:
        yield
    finally:
        MoEAuxLossAutoScaler.main_loss_backward_scale = before


def waiting_losses() -> dict[str, list[float]]:
    """The routers' losses that were summed up since Megatron last logged them: name -> by layer."""
    METRICS.check()
    from megatron.core.transformer.moe import moe_logging

    metrics = moe_logging.get_moe_metrics_tracker().metrics
    return {name: entry.values.tolist() for name, entry in metrics.items()}


@contextmanager
def observed_metrics(observe: Any) -> Iterator[None]:
    """Tells the routers' losses of each step, for the length of the context.

    Args:
        observe: is called with {name: values by layer}, reduced over ranks, where Megatron clears
            them.
    """
    METRICS.check()
    from megatron.core.transformer.moe import moe_logging

    class ObservedMetrics(moe_logging.MoEMetricsTracker):
        def clear(self) -> None:
            observe({name: entry.values.tolist() for name, entry in self.metrics.items()})
            super().clear()

    before = moe_logging.get_moe_metrics_tracker()
    moe_logging.set_moe_metrics_tracker(ObservedMetrics())
    try:
        yield
    finally:
        moe_logging.set_moe_metrics_tracker(before)
