"""Bugs in windows, GRAPE-M, GRAPE-A, TPA, softmax offsets and norms."""

from __future__ import annotations

import dataclasses
from typing import Any

from validation.cases.vpmoe.faults.planting import (
    Planted,
    arguments,
    fault,
    keywords,
    patched,
    result,
)

_CORE = "vpmoe.model.attention.core"


def _pattern(change: Any) -> Planted:
    return result(_CORE, "CoreAttention._pattern", change)


@fault("attention-scale-1-percent", "attention", "self_attention", "a softmax scale 1 % off")
def attention_scale() -> Planted:
    """The dot product is scaled 1 % too large."""
    return _pattern(lambda right: dataclasses.replace(right, scale=right.scale * 1.01))


def _window(change: int) -> Planted:
    return result(_CORE, "layer_window", lambda window: None if window is None else window + change)


@fault(
    "window-plus-one",
    "window",
    "self_attention",
    "W taken as tokens besides the current one (transformers #39408)",
)
def window_plus_one() -> Planted:
    """Local layers see W + 1 tokens."""
    return _window(1)


@fault("window-minus-one", "window", "self_attention", "W - 1 converted twice")
def window_minus_one() -> Planted:
    """Local layers see W - 1 tokens."""
    return _window(-1)


@fault("window-ignored-on-a-layer", "window", "layers.1.self_attention", "a layer left global")
def window_ignored() -> Planted:
    """The second layer sees everything."""

    def wrap(original: Any) -> Any:
        return lambda config, number: None if number == 2 else original(config, number)

    return patched(_CORE, "layer_window", wrap)


@fault("window-schedule-shifted", "window", "self_attention", "layers counted from another number")
def window_schedule_shifted() -> Planted:
    """Each layer has the window of the next one."""
    return arguments(_CORE, "layer_window", lambda config, number: (config, number + 1))


@fault("grape-sign", "grape-m", "core_attention", "rotation by the negative angle for keys alone")
def grape_sign() -> Planted:
    """Keys rotate backwards."""

    def wrap(original: Any) -> Any:
        def rotate(self: Any, x: Any, rotation: Any) -> Any:
            if x.shape[2] == self.num_query_groups_per_partition:
                rotation = rotation * rotation.new_tensor([1.0, -1.0]).view(2, 1, 1, 1, 1)
            return original(self, x, rotation)

        return rotate

    return patched("vpmoe.model.self_attention", "VpmoeSelfAttention._rotate", wrap)


@fault("grape-pairing", "grape-m", "core_attention", "neighbours rotated in pairs, not halves")
def grape_pairing() -> Planted:
    """Planes are (2i, 2i + 1)."""

    def wrap(original: Any) -> Any:
        def rotate(x: Any, cos_sin: Any) -> Any:
            halves = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
            return original(halves, cos_sin).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)

        return rotate

    return patched("vpmoe.model.self_attention", "rotate", wrap)


@fault("grape-base", "grape-m", "grapem", "another base of the frequencies")
def grape_base() -> Planted:
    """Frequencies of base 500,000."""
    return arguments(
        "vpmoe.model.grape",
        "initial_log_frequencies",
        lambda channels, base, scale: (channels, 500_000, scale),
    )


@fault("grape-position-offset", "grape-m", "grapem", "positions counted from 1")
def grape_position_offset() -> Planted:
    """Every position is one more."""
    return arguments(
        "vpmoe.model.grape",
        "rotation_angles",
        lambda phi, positions, scale: (phi, positions + 1, scale),
    )


@fault("grape-phi-in-bf16", "grape-m", "grapem", "phi cast with the rest of the model")
def grape_phi_in_bf16() -> Planted:
    """Frequencies come from phi rounded to bf16."""
    return arguments(
        "vpmoe.model.grape",
        "rotation_angles",
        lambda phi, positions, scale: (phi.bfloat16().to(phi.dtype), positions, scale),
    )


@fault("grape-on-global-layers", "grape-m", "layers.3.self_attention", "--no-rope-freq ignored")
def grape_on_global_layers() -> Planted:
    """Global layers rotate as well."""
    return result("vpmoe.model.config", "VpmoeConfig.rotates", lambda rotates: True)


@fault("alibi-slopes-reversed", "grape-a", "layers.3.self_attention", "heads in another order")
def alibi_slopes_reversed() -> Planted:
    """The first head has the last one's slope."""
    return result(_CORE, "alibi_slopes", lambda slopes: tuple(reversed(slopes)))


@fault("alibi-sign", "grape-a", "layers.3.self_attention", "a bias that favours what is far")
def alibi_sign() -> Planted:
    """Slopes are negative."""
    return result(_CORE, "alibi_slopes", lambda slopes: tuple(-slope for slope in slopes))


@fault("alibi-missing", "grape-a", "layers.3.self_attention", "global layers without positions")
def alibi_missing() -> Planted:
    """Global layers have no bias."""
    return _pattern(lambda right: dataclasses.replace(right, slopes=None))


@fault("alibi-before-scale", "grape-a", "layers.3.self_attention", "bias added before 1/sqrt(d)")
def alibi_before_scale() -> Planted:
    """The bias is divided by sqrt(d) too."""

    def change(right: Any) -> Any:
        if right.slopes is None:
            return right
        return dataclasses.replace(right, slopes=tuple(s * right.scale for s in right.slopes))

    return _pattern(change)


@fault("tpa-rank-not-divided", "tpa", "linear_qkv", "the paper's 1/R left out")
def tpa_rank_not_divided() -> Planted:
    """Queries, keys and values are sums over the ranks, not means."""

    def wrap(original: Any) -> Any:
        return lambda self, a, b, heads, rank: original(self, a, b, heads, rank) * rank

    return patched("vpmoe.model.tpa", "TensorProductQKV._compose", wrap)


@fault("tpa-heads-and-ranks-mixed", "tpa", "linear_qkv", "a factor viewed as [rank, heads]")
def tpa_heads_and_ranks_mixed() -> Planted:
    """The A factors are read with heads and ranks exchanged."""

    def wrap(original: Any) -> Any:
        def compose(self: Any, a: Any, b: Any, heads: int, rank: int) -> Any:
            mixed = a.unflatten(-1, (rank, heads)).transpose(-1, -2).flatten(-2)
            return original(self, mixed, b, heads, rank)

        return compose

    return patched("vpmoe.model.tpa", "TensorProductQKV._compose", wrap)


@fault("softmax-offset-missing", "softmax", "core_attention", "a plain softmax")
def softmax_offset_missing() -> Planted:
    """The extra column is left out."""

    def change(query: Any, key: Any, value: Any, offset: Any, *rest: Any) -> tuple[Any, ...]:
        return (query, key, value, None, *rest)

    return arguments("vpmoe.model.attention.backends", "eager_attention", change)


@fault(
    "softmax-offset-of-another-head",
    "softmax",
    "softmax_offset",
    "offsets sharded in another order",
)
def softmax_offset_of_another_head() -> Planted:
    """Each head has its neighbour's offset: the same until they have learnt."""

    def change(query: Any, key: Any, value: Any, offset: Any, *rest: Any) -> tuple[Any, ...]:
        return (query, key, value, offset.roll(1), *rest)

    return arguments("vpmoe.model.attention.backends", "eager_attention", change)


@fault("attention-in-bf16", "numerics", "core_attention", "a kernel that rounds its inputs")
def attention_in_bf16() -> Planted:
    """Queries and keys are rounded to bf16 before the dot product."""

    def change(query: Any, key: Any, *rest: Any) -> tuple[Any, ...]:
        return (query.bfloat16().to(query.dtype), key.bfloat16().to(key.dtype), *rest)

    return arguments("vpmoe.model.attention.backends", "eager_attention", change)


@fault("norm-epsilon", "norm", "layernorm", "epsilon of another implementation (1e-6)")
def norm_epsilon() -> Planted:
    """RMSNorms use 1e-6."""
    return keywords("vpmoe.model.norm", "RMSNorm.__init__", eps=1e-6)


@fault("qk-norm-missing", "norm", "core_attention", "--qk-layernorm ignored on TPA layers")
def qk_norm_missing() -> Planted:
    """TPA's queries and keys are not normalised."""

    def wrap(original: Any) -> Any:
        def get_query_key_value_tensors(self: Any, hidden_states: Any, *args: Any) -> Any:
            return self.linear_qkv(hidden_states)

        return get_query_key_value_tensors

    return patched("vpmoe.model.tpa", "TPASelfAttention.get_query_key_value_tensors", wrap)
