"""Bugs in positions: GRAPE-M's rotations and GRAPE-A's bias."""

from __future__ import annotations

import dataclasses
from typing import Any

from vpmoe.cases.faults.einsum import einsum_attention
from vpmoe.cases.faults.planting import (
    Planted,
    arguments,
    fault,
    patched,
    result,
    rounded,
    together,
)

_CORE = "vpmoe.model.attention.core"
_ROTATING = "vpmoe.model.self_attention"


def _pattern(change: Any) -> Planted:
    return result(_CORE, "CoreAttention._pattern", change)


@fault("grape-sign", "grape-m", "core_attention", "rotation by the negative angle for keys alone")
def grape_sign() -> Planted:
    """Keys rotate backwards."""

    def wrap(original: Any) -> Any:
        def rotate(self: Any, x: Any, rotation: Any) -> Any:
            if x.shape[2] == self.num_query_groups_per_partition:
                rotation = rotation * rotation.new_tensor([1.0, -1.0]).view(2, 1, 1, 1, 1)
            return original(self, x, rotation)

        return rotate

    return patched(_ROTATING, "VpmoeSelfAttention._rotate", wrap)


@fault(
    "grape-pairing",
    "grape-m",
    "core_attention",
    "neighbours rotated in pairs, not halves "
    "(https://github.com/vllm-project/vllm-ascend/pull/12820)",
)
def grape_pairing() -> Planted:
    """Planes are (2i, 2i + 1)."""

    def wrap(original: Any) -> Any:
        def rotate(x: Any, cos_sin: Any) -> Any:
            halves = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
            return original(halves, cos_sin).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)

        return rotate

    return patched(_ROTATING, "rotate", wrap)


@fault("grape-base", "grape-m", "grapem", "another base of the frequencies", gpu=True)
def grape_base() -> Planted:
    """Frequencies of base 500,000."""
    return arguments(
        "vpmoe.model.grape",
        "initial_log_frequencies",
        lambda channels, base, scale: (channels, 500_000, scale),
    )


@fault("grape-position-offset", "grape-m", "grapem", "positions counted from 1", gpu=True)
def grape_position_offset() -> Planted:
    """Every position is one more."""
    return arguments(
        "vpmoe.model.grape",
        "rotation_angles",
        lambda phi, positions, scale: (phi, positions + 1, scale),
    )


@fault(
    "grape-phi-in-bf16",
    "grape-m",
    "grapem",
    "phi cast with the rest of the model (https://github.com/huggingface/transformers/pull/29285)",
)
def grape_phi_in_bf16() -> Planted:
    """Frequencies come from phi rounded to bf16."""
    return arguments(
        "vpmoe.model.grape",
        "rotation_angles",
        lambda phi, positions, scale: (rounded(phi), positions, scale),
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


@fault(
    "alibi-missing",
    "grape-a",
    "layers.3.self_attention",
    "global layers without positions",
    gpu=True,
)
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


@fault("grape-applied-to-values", "grape-m", "core_attention", "all of q, k and v rotated")
def grape_applied_to_values() -> Planted:
    """Values rotate with their keys."""
    seen: list[Any] = []

    def remember(original: Any) -> Any:
        def rotate(self: Any, x: Any, rotation: Any) -> Any:
            seen[:] = [rotation]
            return original(self, x, rotation)

        return rotate

    def turn(original: Any) -> Any:
        def attend(self: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
            from vpmoe.model.grape import rotate

            if self.config.rotates(self.layer_number) and seen:
                value = rotate(value, seen[0])
            return original(self, query, key, value, *args, **kwargs)

        return attend

    return together(
        patched(_ROTATING, "VpmoeSelfAttention._rotate", remember),
        patched(_CORE, "CoreAttention.forward", turn),
    )


@fault("grape-frequencies-frozen", "grape-m", "grapem", "phi outside the graph")
def grape_frequencies_frozen() -> Planted:
    """Frequencies get no gradient."""
    return arguments(
        "vpmoe.model.grape",
        "rotation_angles",
        lambda phi, positions, scale: (phi.detach() + 0.0 * phi, positions, scale),
    )


@fault("grape-scale-of-another-place", "grape-m", "grapem", "s of the start, not of the rotation")
def grape_scale_of_another_place() -> Planted:
    """Angles are exp(phi / s) with s 1 % larger than phi was started with."""
    return arguments(
        "vpmoe.model.grape",
        "rotation_angles",
        lambda phi, positions, scale: (phi, positions, scale * 1.01),
    )


@fault(
    "grape-rotation-in-bf16",
    "grape-m",
    "core_attention",
    "cos and sin in the model's dtype (https://github.com/NVIDIA/TransformerEngine/issues/1245)",
)
def grape_rotation_in_bf16() -> Planted:
    """Rotations are rounded to bf16, as Megatron's own are."""
    return arguments(_ROTATING, "rotate", lambda x, cos_sin: (x, rounded(cos_sin)))


@fault("grape-half-of-the-planes", "grape-m", "core_attention", "a rotary percentage of 0.5")
def grape_half_of_the_planes() -> Planted:
    """The slower half of the planes stays."""

    def change(x: Any, cos_sin: Any) -> tuple[Any, Any]:
        kept = cos_sin.clone()
        half = kept.shape[-1] // 2
        kept[0, ..., half:], kept[1, ..., half:] = 1.0, 0.0
        return x, kept

    return arguments(_ROTATING, "rotate", change)


@fault("grape-queries-only", "grape-m", "core_attention", "keys left as they are")
def grape_queries_only() -> Planted:
    """Keys do not rotate."""

    def wrap(original: Any) -> Any:
        def rotate(self: Any, x: Any, rotation: Any) -> Any:
            if x.shape[2] == self.num_query_groups_per_partition:
                return x
            return original(self, x, rotation)

        return rotate

    return patched(_ROTATING, "VpmoeSelfAttention._rotate", wrap)


@fault("alibi-on-local-layers", "grape-a", "self_attention", "a bias on every layer")
def alibi_on_local_layers() -> Planted:
    """Local layers have a bias besides their rotation."""

    def wrap(original: Any) -> Any:
        def pattern(self: Any, scale: Any) -> Any:
            from vpmoe.model.grape import alibi_slopes

            right = original(self, scale)
            return dataclasses.replace(right, slopes=alibi_slopes(self.heads))

        return pattern

    return patched(_CORE, "CoreAttention._pattern", wrap)


@fault(
    "alibi-slopes-counted-from-0",
    "grape-a",
    "layers.3.self_attention",
    "2^(-8h/H) from h = 0 (https://github.com/paiml/aprender/pull/2143)",
)
def alibi_slopes_counted_from_0() -> Planted:
    """Each head has the slope before its own."""
    return result(_CORE, "alibi_slopes", lambda slopes: (1.0, *slopes[:-1]))


@fault(
    "alibi-bias-in-bf16",
    "grape-a",
    "layers.3.self_attention",
    "logits that take their bias in bf16",
)
def alibi_bias_in_bf16() -> Planted:
    """Biased logits are rounded before the softmax."""

    def wrap(original: Any) -> Any:
        def attend(q: Any, k: Any, v: Any, offset: Any, ids: Any, pattern: Any) -> Any:
            if pattern.slopes is None:
                return original(q, k, v, offset, ids, pattern)
            return einsum_attention(q, k, v, offset, ids, pattern, logits_as=rounded)

        return attend

    return patched("vpmoe.model.attention.backends", "eager_attention", wrap)
