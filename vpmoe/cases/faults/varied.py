"""Bugs that equal values hide: wrong rates, ramps, minima, clipping, seeds, odd sizes, marks."""

from __future__ import annotations

import dataclasses
from typing import Any

from vpmoe.cases.faults.planting import (
    Planted,
    after,
    arguments,
    fault,
    keywords,
    patched,
    result,
    rounded,
    skipped,
    with_flags,
)
from vpmoe.megatron import points

_MEGATRON = "vpmoe.optimizer.megatron"


# --- learning rates ------------------------------------------------------------------------------


@fault(
    "matrices-learn-at-the-other-rate",
    "schedule",
    "optimizer",
    "two learning rates exchanged",
    case="ramps",
)
def matrices_learn_at_the_other_rate() -> Planted:
    """NorMuon's matrices take --normuon-aux-lr."""

    def wrap(original: Any) -> Any:
        def parameter_policy(name: str, param: Any, options: Any) -> Any:
            policy = original(name, param, options)
            if policy.optimizer != "normuon":
                return policy
            source, rate = "--normuon-aux-lr", options.normuon_aux_lr
            return dataclasses.replace(policy, lr_source=source, max_lr=rate)

        return parameter_policy

    return patched(_MEGATRON, "parameter_policy", wrap)


@fault("decoupled-rate-ignored", "schedule", "optimizer", "a flag that nothing reads", case="ramps")
def decoupled_rate_ignored() -> Planted:
    """Embeddings and output learn as vectors do."""

    def wrap(original: Any) -> Any:
        def parameter_policy(name: str, param: Any, options: Any) -> Any:
            import copy

            same = copy.copy(options)
            same.decoupled_lr = same.decoupled_min_lr = None
            return original(name, param, same)

        return parameter_policy

    return patched(_MEGATRON, "parameter_policy", wrap)


@fault(
    "minimum-of-a-group-ignored",
    "schedule",
    "learning_rate",
    "a schedule with one minimum for all groups",
    case="ramps",
    steps=4,
    canary=False,
)
def minimum_of_a_group_ignored() -> Planted:
    """Every group decays to --min-lr."""

    def change(self: Any, group: Any) -> tuple[Any, ...]:
        return self, {name: value for name, value in group.items() if name != "min_lr"}

    return arguments(*points.LEARNING_RATE.place, change)


@fault(
    "warm-up-one-step-ahead",
    "schedule",
    "learning_rate",
    "an iteration counted before it is taken",
    case="ramps",
)
def warm_up_one_step_ahead() -> Planted:
    """The warm-up counts one iteration too many."""

    def wrap(original: Any) -> Any:
        def get_lr(self: Any, group: Any) -> Any:
            before = self.num_steps
            if before < self.lr_warmup_steps:
                self.num_steps += self.lr_warmup_steps // 2  # of its two iterations
            try:
                return original(self, group)
            finally:
                self.num_steps = before

        return get_lr

    return patched(*points.LEARNING_RATE.place, wrap)


@fault("warm-up-from-zero", "schedule", "learning_rate", "a start that nothing reads", case="ramps")
def warm_up_from_zero() -> Planted:
    """--lr-warmup-init is 0."""
    return with_flags("--lr-warmup-init", "0")


@fault(
    "decay-is-linear",
    "schedule",
    "learning_rate",
    "another --lr-decay-style",
    case="ramps",
    steps=4,
    canary=False,
)
def decay_is_linear() -> Planted:
    """The learning rate falls linearly."""
    return with_flags("--lr-decay-style", "linear")


@fault(
    "end-decay-is-linear",
    "schedule",
    "learning_rate",
    "another --lr-wsd-decay-style",
    case="ramps_by_samples",
    steps=6,
    canary=False,
)
def end_decay_is_linear() -> Planted:
    """WSD's end falls linearly, not as its root."""
    return with_flags("--lr-wsd-decay-style", "linear")


@fault(
    "tail-at-zero",
    "schedule",
    "learning_rate",
    "a schedule that ends at 0, not at its minimum",
    case="ramps",
    steps=None,
    canary=False,
)
def tail_at_zero() -> Planted:
    """After the decay nothing is learnt."""

    def wrap(original: Any) -> Any:
        def get_lr(self: Any, group: Any) -> Any:
            found = original(self, group)
            return 0.0 if self.num_steps > self.lr_decay_steps else found

        return get_lr

    return patched(*points.LEARNING_RATE.place, wrap)


# --- weight decay and batch ----------------------------------------------------------------------


@fault(
    "weight-decay-does-not-grow",
    "schedule",
    "decay",
    "a ramp that nothing reads",
    case="ramps",
)
def weight_decay_does_not_grow() -> Planted:
    """Weight decay is at its end from the start."""

    def wrap(original: Any) -> Any:
        return lambda self, group=None: self.end_wd

    return patched(*points.WEIGHT_DECAY.place, wrap)


@fault(
    "weight-decay-grows-linearly",
    "schedule",
    "decay",
    "another --weight-decay-incr-style",
    case="ramps",
    steps=2,
)
def weight_decay_grows_linearly() -> Planted:
    """Weight decay grows linearly, not as a cosine."""
    return with_flags("--weight-decay-incr-style", "linear")


@fault(
    "batch-does-not-grow",
    "schedule",
    "batch",
    "--rampup-batch-size, which Megatron no longer reads",
    case="ramps_by_samples",
    steps=3,
    canary=False,
)
def batch_does_not_grow() -> Planted:
    """Every batch is as large as the first."""
    return with_flags("--step-batch-size-schedule", "0:2")


@fault(
    "divided-by-the-first-batch",
    "loss",
    "grad",
    "a number of micro-batches that is read once",
    case="ramps_by_samples",
    steps=3,
    canary=False,
)
def divided_by_the_first_batch() -> Planted:
    """The loss is divided as if the batch had not grown."""
    return patched(
        "vpmoe.data.batch",
        "GlobalBatch",
        lambda original: lambda counts, parts: original(counts, min(parts, 2)),
    )


# --- clipping and losses -------------------------------------------------------------------------


@fault(
    "clipped-by-its-own-norm",
    "clipping",
    "clip",
    "a norm over one optimizer of a chain",
    case="ramps",
)
def clipped_by_its_own_norm() -> Planted:
    """Each optimizer of the chain clips by the norm of its own gradients."""

    def wrap(original: Any) -> Any:
        def clip(parameters: Any, max_norm: float, total_norm: float, **kwargs: Any) -> Any:
            squares = [
                float(p.grad.double().square().sum()) for p in parameters if p.grad is not None
            ]
            return original(parameters, max_norm, sum(squares) ** 0.5, **kwargs)

        return clip

    return patched(*points.CLIP.place, wrap)


@fault(
    "clipped-before-unscaling",
    "clipping",
    "clip",
    "a norm of gradients that are still scaled",
    case="ramps",
)
def clipped_before_unscaling() -> Planted:
    """Clipping divides by a norm that is twice the gradients'."""

    def wrap(original: Any) -> Any:
        def clip(parameters: Any, max_norm: float, total_norm: float, **kwargs: Any) -> Any:
            return original(parameters, max_norm, 2 * total_norm, **kwargs)

        return clip

    return patched(*points.CLIP.place, wrap)


@fault(
    "z-loss-with-the-balance-weight",
    "loss",
    "grad",
    "the coefficient of another loss",
    case="ramps",
)
def z_loss_with_the_balance_weight() -> Planted:
    """The routers' z-loss weighs what the balancing loss should."""
    return with_flags("--moe-z-loss-coeff", "3.5e-3")


@fault("balance-with-the-z-weight", "loss", "grad", "the coefficient of another loss", case="ramps")
def balance_with_the_z_weight() -> Planted:
    """The balancing loss weighs what the z-loss should."""
    return with_flags("--moe-aux-loss-coeff", "7e-4")


# --- seeds ---------------------------------------------------------------------------------------


@fault(
    "weights-of-the-default-seed",
    "seed",
    "weight",
    "--seed does not reach the weights",
    case="ramps",
)
def weights_of_the_default_seed() -> Planted:
    """Weights are drawn with Megatron's default seed."""
    return arguments(
        "vpmoe.model.builder",
        "initialize_weights",
        lambda model, config, seed, groups: (model, config, 1234, groups),
    )


@fault("order-of-the-default-seed", "seed", "batch", "--seed does not reach the data", case="ramps")
def order_of_the_default_seed() -> Planted:
    """Documents are shuffled with Megatron's default seed."""
    return keywords("vpmoe.data.dataset", "GPTDatasetConfig", random_seed=1234)


# --- sizes that are no powers of two -------------------------------------------------------------


@fault(
    "slopes-of-a-power-of-two",
    "shape",
    "slopes",
    "ALiBi's rule for 8 heads applied to 6",
    case="odd",
)
def slopes_of_a_power_of_two() -> Planted:
    """The slopes are those of the next power of two."""

    def wrap(original: Any) -> Any:
        return lambda heads: original(1 << (heads - 1).bit_length())[:heads]

    return patched("vpmoe.model.attention.core", "alibi_slopes", wrap)


@fault(
    "last-plane-like-the-one-before",
    "shape",
    "grapem",
    "planes counted in pairs",
    case="odd",
)
def last_plane_like_the_one_before() -> Planted:
    """An odd plane has its neighbour's frequency."""

    def change(phi: Any) -> Any:
        if len(phi) % 2:
            phi[-1] = phi[-2]
        return phi

    return result("vpmoe.model.grape", "initial_log_frequencies", change)


# --- bf16 ----------------------------------------------------------------------------------------


@fault(
    "frequencies-in-bf16", "numerics", "grapem", "a parameter cast with the model", case="tiny_bf16"
)
def frequencies_in_bf16() -> Planted:
    """GRAPE-M's frequencies get the model's type."""

    def wrap(original: Any) -> Any:
        def apply(self: Any, fn: Any, recurse: bool = True) -> Any:
            import torch

            return torch.nn.Module._apply(self, fn, recurse)

        return apply

    return patched("vpmoe.model.grape", "GrapeM._apply", wrap)


@fault("routing-in-bf16", "numerics", "router", "--moe-router-dtype ignored", case="tiny_bf16")
def routing_in_bf16() -> Planted:
    """Routers compute in the model's type."""

    def wrap(original: Any) -> Any:
        def gating(self: Any, input: Any) -> Any:  # noqa: A002 - Megatron's name
            before = self.config.moe_router_dtype
            self.config.moe_router_dtype = None
            try:
                return original(self, input)
            finally:
                self.config.moe_router_dtype = before

        return gating

    return patched(*points.GATING.place, wrap)


@fault(
    "main-weights-in-bf16", "numerics", "optimizer", "no fp32 copy of the weights", case="tiny_bf16"
)
def main_weights_in_bf16() -> Planted:
    """The weights that NorMuon steps on are rounded after each step."""

    def act(self: Any) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.copy_(rounded(parameter.data))

    return after("vpmoe.optimizer.normuon", "NorMuon.step", act)


# --- marks ---------------------------------------------------------------------------------------


@fault(
    "norms-not-marked",
    "marks",
    "marks",
    "a gradient that stays each tensor-parallel rank's own",
    case="schedules",
    steps=None,
    canary=False,
)
def norms_not_marked() -> Planted:
    """Norms are not marked as replicated over parts of the sequence."""
    return skipped("vpmoe.model.norm", "mark_sequence")


@fault(
    "experts-not-marked",
    "marks",
    "group",
    "experts reduced with everything else",
    case="schedules",
    steps=None,
    canary=False,
)
def experts_not_marked() -> Planted:
    """Experts are not marked as sharded over ranks of their own."""
    return skipped("vpmoe.model.experts", "mark_expert")


@fault(
    "offsets-not-marked",
    "marks",
    "marks",
    "a shard that counts once for each rank in the norm",
    case="schedules",
    steps=None,
    canary=False,
)
def offsets_not_marked() -> Planted:
    """The softmax offsets of a rank's heads are not marked as its part."""
    return skipped("vpmoe.model.attention.core", "set_tensor_model_parallel_attributes")
