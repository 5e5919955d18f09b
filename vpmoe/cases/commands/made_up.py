"""Made-up models for the commands' cases: an architecture, edits of it, and weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

SEED = 40
BIAS = "decoder.layers.1.mlp.router.expert_bias"
_LOCAL = {"window": 6, "tpa": True, "rotates": True, "alibi": False, "experts": True}
GLOBAL_LAYER = {"window": None, "tpa": False, "rotates": False, "alibi": True, "experts": True}
ARCHITECTURE: Mapping[str, Any] = {
    "vocab_size": 96,
    "max_sequence_length": 24,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 8,
    "ffn_hidden_size": 20,
    "norm_epsilon": 1e-5,
    "qk_norm": True,
    "softmax": "learnable",
    "position_embedding": "grapem",
    "rotary_base": 10_000,
    "grapem_log_freq_scale": 16.0,
    "grapem_per_head": False,
    "tpa": {"rank": 2, "q_rank": 3},
    "experts": {
        "count": 8,
        "ffn_hidden_size": 12,
        "shared_ffn_hidden_size": 24,
        "topk": 2,
        "groups": 2,
        "group_topk": 1,
        "group_score_topk": 1,
        "score_function": "sigmoid",
        "pre_softmax": False,
        "scaling_factor": 2.5,
        "bias": True,
    },
    "layers": [{**_LOCAL, "experts": False}, _LOCAL, _LOCAL, GLOBAL_LAYER],
}
Edits = Mapping[str, Any]
"""Path of a key -> its value; `GONE` leaves it out."""
GONE = object()


def edited(document: Mapping[str, Any], edits: Edits, separator: str = ".") -> Any:
    """A copy of a JSON object, other values at some paths."""
    found: Any = copy.deepcopy(dict(document))
    for path, value in edits.items():
        *outer, last = path.split(separator)
        place = found
        for step in outer:
            place = place[int(step) if isinstance(place, list) else step]
        key = int(last) if isinstance(place, list) else last
        if value is GONE:
            del place[key]
        else:
            place[key] = value
    return found


def tensors_of(model: Any) -> dict[str, Any]:
    """Made-up weights, drawn in a way that has the same bits on every CPU."""
    import torch

    from vpmoe.export.architecture import tensor_shapes

    generator = torch.Generator().manual_seed(SEED)
    found = {}
    for name, shape in tensor_shapes(model).items():
        drawn = torch.rand(shape, generator=generator) - 0.5
        # Norms about one, frequencies that fall, matrices that keep the size of their input.
        if name.endswith("norm.weight"):
            drawn = drawn + 1
        elif name == "grapem.phi":
            drawn = drawn - torch.arange(len(drawn)) * 8
        found[name] = drawn
    return found
