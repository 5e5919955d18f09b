"""Bugs in the optimizer, its schedule, and what a resumed run loads."""

from __future__ import annotations

import dataclasses
from typing import Any

from validation.cases.vpmoe.faults.planting import Planted, fault, keywords, patched, result

_MEGATRON = "vpmoe.optimizer.megatron"


@fault("normuon-momentum", "optimizer", "momentum_buffer", "momentum of another default (0.9)")
def normuon_momentum() -> Planted:
    """NorMuon's momentum is 0.9."""
    return keywords(_MEGATRON, "NorMuon", momentum=0.9)


@fault("normuon-beta2", "optimizer", "second_momentum", "Adam's beta2 of 0.999 taken over")
def normuon_beta2() -> Planted:
    """NorMuon's second moment decays with 0.999."""
    return keywords(_MEGATRON, "NorMuon", beta2=0.999)


@fault("polar-express-rows-swapped", "optimizer", "replay", "coefficients in another order")
def polar_express_rows_swapped() -> Planted:
    """The first two coefficient triples are exchanged."""

    def change(rows: Any) -> Any:
        first, second, *rest = rows
        return (second, first, *rest)

    return result(_MEGATRON, "polar_express_coefficients", change)


@fault("polar-express-one-iteration-less", "optimizer", "replay", "four iterations, not five")
def polar_express_one_iteration_less() -> Planted:
    """The last triple is left out."""
    return result(_MEGATRON, "polar_express_coefficients", lambda rows: tuple(rows)[:-1])


@fault("update-not-scaled-by-shape", "optimizer", "replay", "sqrt(max(1, m/n)) left out")
def update_not_scaled_by_shape() -> Planted:
    """Tall matrices step as far as wide ones."""

    def wrap(original: Any) -> Any:
        return property(lambda chunk: chunk.shape[:1] * 2)

    return patched("vpmoe.optimizer.normuon", "_Chunk.full_shape", wrap)


@fault("decay-on-norms", "optimizer", "optimizer", "weight decay on vectors")
def decay_on_norms() -> Planted:
    """Everything decays."""
    return result(
        _MEGATRON, "parameter_policy", lambda policy: dataclasses.replace(policy, decays=True)
    )


@fault("learning-rate-1-percent", "optimizer", "update", "a schedule that is a step ahead")
def learning_rate_1_percent() -> Planted:
    """Every learning rate is 1 % too high."""
    return result(
        "megatron.core.optimizer_param_scheduler",
        "OptimizerParamScheduler.get_lr",
        lambda rate: rate * 1.01,
    )


@fault(
    "optimizer-state-dropped",
    "resume",
    "",
    "a resumed run whose optimizer starts anew",
    case="resume",
    steps=2,
    canary=False,
)
def optimizer_state_dropped() -> Planted:
    """A resumed run does not load the optimizer."""

    def wrap(original: Any) -> Any:
        def train(flags: list[str]) -> None:
            original([*flags, "--no-load-optim"] if "--load" in flags else flags)

        return train

    return patched("vpmoe.pretrain", "_train", wrap)
