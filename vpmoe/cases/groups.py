"""Names of parameter groups in curves such as `update_rms/<group>`."""

from __future__ import annotations

_GROUPS = (
    ("word_embeddings", "embedding"),
    ("output_layer", "output"),
    ("shared_experts", "shared_experts"),
    ("experts", "experts"),
    ("router", "router"),
    ("grape", "position"),
    ("softmax_offset", "softmax_offset"),
    ("norm", "norm"),
    ("self_attention", "attention"),
    ("mlp", "dense_ffn"),
)


def parameter_group(name: str) -> str:
    """The group of a parameter, by its fully qualified name; `other` for an unknown one."""
    return next((group for part, group in _GROUPS if part in name), "other")
