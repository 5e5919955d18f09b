"""Bugs in windows, TPA, softmax offsets and norms."""

from __future__ import annotations

import dataclasses
from typing import Any

from vpmoe.cases.faults.planting import (
    Planted,
    arguments,
    fault,
    keywords,
    patched,
    result,
    together,
)

_CORE = "vpmoe.model.attention.core"
_BACKENDS = "vpmoe.model.attention.backends"
_EAGER = "vpmoe.model.attention.eager"


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
    "W taken as tokens besides the current one "
    "(https://github.com/huggingface/transformers/issues/39408)",
    gpu=True,
)
def window_plus_one() -> Planted:
    """Local layers see W + 1 tokens."""
    return _window(1)


@fault("window-minus-one", "window", "self_attention", "W - 1 converted twice", gpu=True)
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


@fault("tpa-rank-not-divided", "tpa", "linear_qkv", "the paper's 1/R left out", gpu=True)
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

    return arguments(_BACKENDS, "eager_attention", change)


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

    return arguments(_BACKENDS, "eager_attention", change)


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


@fault("window-on-global-layers", "window", "layers.3.self_attention", "a window on every layer")
def window_on_global_layers() -> Planted:
    """Global layers see W tokens too, and so lose their bias."""

    def wrap(original: Any) -> Any:
        return lambda config, number: original(config, 1)

    return patched(_CORE, "layer_window", wrap)


@fault("mask-sees-one-ahead", "window", "self_attention", "a triangle that starts one too late")
def mask_sees_one_ahead() -> Planted:
    """Each token sees the next one."""

    def change(allowed: Any) -> Any:
        return allowed | allowed.roll(1, dims=-1).tril(1)

    return result(_EAGER, "allowed_keys", change)


@fault(
    "window-mask-overwritten",
    "window",
    "self_attention",
    "a causal mask put over the window (https://github.com/NVIDIA/Megatron-LM/issues/7039)",
)
def window_mask_overwritten() -> Planted:
    """The kernel's mask has no window, whatever the layer's schedule says."""
    return arguments(
        _EAGER,
        "allowed_keys",
        lambda length, window, ids, device: (length, None, ids, device),
    )


@fault(
    "documents-mixed-in-the-kernel", "packing", "core_attention", "document ids that are dropped"
)
def documents_mixed_in_the_kernel() -> Planted:
    """The kernel's mask has no documents, which the batch has."""
    return arguments(
        _EAGER,
        "allowed_keys",
        lambda length, window, ids, device: (length, window, None, device),
    )


@fault("tpa-groups-interleaved", "tpa", "core_attention", "repeat in place of repeat_interleave")
def tpa_groups_interleaved() -> Planted:
    """Query heads take the KV groups in turn."""

    def change(query: Any, key: Any, value: Any, *rest: Any) -> tuple[Any, ...]:
        times = (1, 1, query.shape[2] // key.shape[2], 1)
        return (query, key.repeat(times), value.repeat(times), *rest)

    return arguments(_BACKENDS, "eager_attention", change)


@fault("tpa-query-rank-for-keys", "tpa", "linear_qkv", "keys and values divided by R_q, not R")
def tpa_query_rank_for_keys() -> Planted:
    """Keys and values are divided by the queries' rank."""

    def wrap(original: Any) -> Any:
        def compose(self: Any, a: Any, b: Any, heads: int, rank: int) -> Any:
            return original(self, a, b, heads, rank) * (rank / self.q_rank)

        return compose

    return patched("vpmoe.model.tpa", "TensorProductQKV._compose", wrap)


@fault("softmax-offset-after-softmax", "softmax", "core_attention", "an offset outside the softmax")
def softmax_offset_after_softmax() -> Planted:
    """The context of a plain softmax is weighed by the sigmoid of the negative offset."""

    def wrap(original: Any) -> Any:
        def attend(query: Any, key: Any, value: Any, offset: Any, *rest: Any) -> Any:
            context = original(query, key, value, None, *rest)
            share = offset.neg().sigmoid().repeat_interleave(query.shape[-1])
            return context * share.to(context.dtype)

        return attend

    return patched(_BACKENDS, "eager_attention", wrap)


@fault("softmax-offset-frozen", "softmax", "softmax_offset", "an offset outside the graph")
def softmax_offset_frozen() -> Planted:
    """Offsets get no gradient."""

    def change(query: Any, key: Any, value: Any, offset: Any, *rest: Any) -> tuple[Any, ...]:
        return (query, key, value, offset.detach() + 0.0 * offset, *rest)

    return arguments(_BACKENDS, "eager_attention", change)


@fault(
    "softmax-offset-scaled", "softmax", "softmax_offset", "an offset scaled by 1/sqrt(d) as well"
)
def softmax_offset_scaled() -> Planted:
    """The offset is a logit before scaling: no matter until it has learnt."""

    def wrap(original: Any) -> Any:
        def attend(q: Any, k: Any, v: Any, offset: Any, ids: Any, pattern: Any) -> Any:
            return original(q, k, v, offset * pattern.scale, ids, pattern)

        return attend

    return patched(_BACKENDS, "eager_attention", wrap)


@fault("qk-norm-epsilon", "norm", "layernorm", "epsilon of the layer norms in the heads' norms")
def qk_norm_epsilon() -> Planted:
    """Norms of queries and keys use 1e-3."""

    def wrap(original: Any) -> Any:
        def build(self: Any, config: Any, hidden_size: int, eps: float = 1e-5) -> None:
            original(self, config, hidden_size, 1e-3 if hidden_size == config.kv_channels else eps)

        return build

    return patched("vpmoe.model.norm", "RMSNorm.__init__", wrap)


@fault(
    "qk-norm-after-rotation",
    "norm",
    "layernorm",
    "QK-norm applied to rotated heads: the same until its weights have learnt",
    steps=2,
)
def qk_norm_after_rotation() -> Planted:
    """Local layers normalise after rotating."""

    def without(original: Any) -> Any:
        def get_query_key_value_tensors(
            self: Any, hidden_states: Any, *args: Any, **kw: Any
        ) -> Any:
            return self.linear_qkv(hidden_states)

        return get_query_key_value_tensors

    def behind(original: Any) -> Any:
        def rotate(self: Any, x: Any, rotation: Any) -> Any:
            is_query = x.shape[2] == self.num_attention_heads_per_partition
            return (self.q_layernorm if is_query else self.k_layernorm)(original(self, x, rotation))

        return rotate

    return together(
        patched("vpmoe.model.tpa", "TPASelfAttention.get_query_key_value_tensors", without),
        patched("vpmoe.model.self_attention", "VpmoeSelfAttention._rotate", behind),
    )


@fault("qk-norm-of-keys-missing", "norm", "core_attention", "one of two norms forgotten")
def qk_norm_of_keys_missing() -> Planted:
    """TPA's keys are not normalised."""

    def wrap(original: Any) -> Any:
        def get_query_key_value_tensors(
            self: Any, hidden_states: Any, *args: Any, **kw: Any
        ) -> Any:
            query, _, value = original(self, hidden_states, *args, **kw)
            return query, self.linear_qkv(hidden_states)[1], value

        return get_query_key_value_tensors

    return patched("vpmoe.model.tpa", "TPASelfAttention.get_query_key_value_tensors", wrap)
