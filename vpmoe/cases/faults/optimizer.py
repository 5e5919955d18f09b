"""Bugs in the optimizer, its schedule, and the weights that it starts from."""

from __future__ import annotations

import dataclasses
from typing import Any

from vpmoe.cases.faults.planting import (
    Planted,
    fault,
    keywords,
    patched,
    result,
    with_flags,
)
from vpmoe.megatron import points

_MEGATRON = "vpmoe.optimizer.megatron"


@fault(
    "normuon-momentum",
    "optimizer",
    "momentum_buffer",
    "momentum of another default (0.9)",
    gpu=True,
)
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

    return patched("vpmoe.optimizer.normuon", "Chunk.full_shape", wrap)


@fault(
    "decay-on-norms",
    "optimizer",
    "optimizer",
    "weight decay on vectors (https://github.com/ServiceNow/Fast-LLM/issues/542)",
)
def decay_on_norms() -> Planted:
    """Everything decays."""
    return result(
        _MEGATRON, "parameter_policy", lambda policy: dataclasses.replace(policy, decays=True)
    )


@fault(
    "learning-rate-1-percent", "optimizer", "update", "a schedule that is a step ahead", gpu=True
)
def learning_rate_1_percent() -> Planted:
    """Every learning rate is 1 % too high."""
    return result(
        *points.LEARNING_RATE.place,
        lambda rate: rate * 1.01,
    )


@fault("nesterov-off", "optimizer", "optimizer", "heavy-ball momentum")
def nesterov_off() -> Planted:
    """The momentum itself is orthogonalised."""

    def wrap(original: Any) -> Any:
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            # With the gradient put where the momentum will be, both become the new momentum.
            self.init_state()
            for group in self.param_groups:
                for parameter in group["params"]:
                    momentum = self.state[parameter]["momentum_buffer"]
                    momentum.lerp_(parameter.grad, 1.0 - group["momentum"])
                    parameter.grad.copy_(momentum)
            return original(self, *args, **kwargs)

        return step

    return patched("vpmoe.optimizer.normuon", "NorMuon.step", wrap)


@fault("normuon-epsilon", "optimizer", "replay", "Adam's epsilon in the second moment")
def normuon_epsilon() -> Planted:
    """NorMuon's epsilon is 1e-4."""
    return keywords(_MEGATRON, "NorMuon", eps=1e-4)


@fault("update-scaled-as-transposed", "optimizer", "replay", "rows and columns exchanged")
def update_scaled_as_transposed() -> Planted:
    """Wide matrices step as far as tall ones should."""

    def wrap(original: Any) -> Any:
        return property(lambda chunk: original.fget(chunk)[::-1])

    return patched("vpmoe.optimizer.normuon", "Chunk.full_shape", wrap)


@fault(
    "fused-projection-as-one-matrix", "optimizer", "linear_qkv", "q, k and v orthogonalised at once"
)
def fused_projection_as_one_matrix() -> Planted:
    """Megatron's fused query, key and value rows are one matrix."""
    return result(
        _MEGATRON, "matrix_layout", lambda layout: dataclasses.replace(layout, block_rows=None)
    )


@fault("router-stepped-by-adamw", "optimizer", "router", "another optimizer for a matrix")
def router_stepped_by_adamw() -> Planted:
    """Routers are AdamW's."""

    def wrap(original: Any) -> Any:
        def parameter_policy(name: str, *args: Any) -> Any:
            policy = original(name, *args)
            return dataclasses.replace(policy, optimizer="adamw") if "router" in name else policy

        return parameter_policy

    return patched(_MEGATRON, "parameter_policy", wrap)


@fault("embedding-rate-halved", "optimizer", "embedding", "a group with another learning rate")
def embedding_rate_halved() -> Planted:
    """Embeddings learn at half the rate."""

    def wrap(original: Any) -> Any:
        def parameter_policy(name: str, *args: Any) -> Any:
            policy = original(name, *args)
            if "embedding." not in name:
                return policy
            return dataclasses.replace(policy, max_lr=policy.max_lr / 2)

        return parameter_policy

    return patched(_MEGATRON, "parameter_policy", wrap)


@fault("decay-doubled", "optimizer", "optimizer", "weight decay applied by two hands")
def decay_doubled() -> Planted:
    """Weight decay is twice the preset's."""
    return result(
        *points.WEIGHT_DECAY.place,
        lambda decay: 2 * decay,
    )


@fault(
    "schedule-ten-iterations-longer",
    "optimizer",
    "learning_rate",
    "another --lr-decay-iters",
    steps=2,
)
def schedule_ten_iterations_longer() -> Planted:
    """The learning rate decays over 100 iterations."""
    return with_flags("--lr-decay-iters", "100")


@fault(
    "warm-up-of-one-iteration", "optimizer", "optimizer", "a warm-up that counts from 0", steps=2
)
def warm_up_of_one_iteration() -> Planted:
    """The first iteration is warm-up."""
    return with_flags("--lr-warmup-iters", "1")


@fault(
    "adam-beta2", "optimizer", "optimizer", "torch's default of 0.999", case="tiny_adam", steps=2
)
def adam_beta2() -> Planted:
    """AdamW's second moment decays with 0.999."""
    return with_flags("--adam-beta2", "0.999")


@fault("adam-epsilon", "optimizer", "update_rms", "an epsilon of 1e-5", case="tiny_adam")
def adam_epsilon() -> Planted:
    """AdamW's epsilon is 1e-5."""
    return with_flags("--adam-eps", "1e-5")


@fault(
    "adam-coupled-decay",
    "optimizer",
    "update_rms",
    "L2 in the gradient (AdamW against Adam)",
    case="tiny_adam",
)
def adam_coupled_decay() -> Planted:
    """Weight decay goes through Adam's moments."""

    def wrap(original: Any) -> Any:
        import torch

        return torch.optim.Adam

    return patched("torch.optim", "AdamW", wrap)


@fault("initial-weights-2-percent-wider", "initialization", "weight", "another --init-method-std")
def initial_weights_wider() -> Planted:
    """Weights are drawn with a standard deviation of 0.0255."""
    return with_flags("--init-method-std", "0.0255")


@fault("initial-projections-narrower", "initialization", "weight", "GPT-2's 1/sqrt(2 L)")
def initial_projections_narrower() -> Planted:
    """Projections into the residual stream start smaller."""

    def change(found: Any) -> Any:
        def draw(tensor: Any) -> Any:
            return found(tensor).mul_(8**-0.5)

        return draw

    def wrap(original: Any) -> Any:
        def method(name: str, config: Any) -> Any:
            found = original(name, config)
            into = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
            return change(found) if into else found

        return method

    return patched("vpmoe.model.initialization", "_method", wrap)
