"""The reference model of exports, in every form that an architecture can have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from validation.running.recorder import Recorder
from vpmoe.cases.commands.made_up import (
    ARCHITECTURE,
    BIAS,
    GLOBAL_LAYER,
    SEED,
    Edits,
    edited,
    tensors_of,
)
from vpmoe.cases.commands.session import session

# Other models: path of a key -> its value.
_VARIANTS: Mapping[str, Edits] = {
    "base": {},
    "without TPA": {"tpa": None, **{f"layers.{n}.tpa": False for n in range(3)}},
    "RoPE": {"position_embedding": "rope", "rotary_base": 500, "softmax": "off-by-one"},
    "no positions": {
        "position_embedding": "none",
        "softmax": "vanilla",
        "qk_norm": False,
        "layers": [{**GLOBAL_LAYER, "alibi": False}] * 4,
        "tpa": None,
    },
    "frequencies a head": {"grapem_per_head": True, "num_attention_heads": 6},
    "three heads": {"num_attention_heads": 3, "num_query_groups": 1},
    "ALiBi that rotates": {"layers.3.rotates": True},
    "one group of experts": {
        "experts.groups": 1,
        "experts.group_topk": 1,
        "experts.group_score_topk": 2,
    },
    "groups by their two best": {"experts.group_score_topk": 2},
    "softmax of all": {
        "experts.score_function": "softmax",
        "experts.pre_softmax": True,
        "experts.bias": False,
    },
    "softmax of the chosen": {"experts.score_function": "softmax", "experts.bias": False},
    "one expert": {
        "experts.topk": 1,
        "experts.shared_ffn_hidden_size": 0,
    },
    "dense": {"experts": None, **{f"layers.{n}.experts": False for n in (1, 2, 3)}},
}


def record_reference(recorder: Recorder) -> None:
    """Logits of the reference model, its flags and its tensors, of each kind of model."""
    import torch

    from vpmoe.export.architecture import parse_architecture, tensor_shapes
    from vpmoe.export.flags import flags_of
    from vpmoe.export.reference import ReferenceModel

    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(ARCHITECTURE["vocab_size"], (2, 20), generator=generator)
    documents = (torch.arange(20) >= torch.tensor([[20], [7]])).long()
    for name, edits in _VARIANTS.items():
        model = parse_architecture(edited(ARCHITECTURE, edits))
        place = f"variant/{name}"
        recorder.discrete(place, flags_of(model), tensor="flags")
        shapes = {key: list(shape) for key, shape in tensor_shapes(model).items()}
        recorder.discrete(place, shapes, tensor="shapes")
        logits = ReferenceModel(model, tensors_of(model))(tokens, documents)
        recorder.tensor(
            step=0, micro_batch=0, phase="forward", module=place, tensor="logits", value=logits
        )
    with session(recorder, "reference") as commands:
        model = parse_architecture(ARCHITECTURE)
        tensors = tensors_of(model)
        commands.call(
            "a missing tensor",
            lambda: ReferenceModel(
                model, {key: value for key, value in tensors.items() if key != BIAS}
            ),
        )
        commands.call(
            "an unknown tensor", lambda: ReferenceModel(model, tensors | {"gate": torch.ones(1)})
        )
        commands.call(
            "a short tensor", lambda: ReferenceModel(model, tensors | {BIAS: torch.ones(3)})
        )
        built = ReferenceModel(model, tensors)
        commands.call("too long", lambda: built(torch.zeros(1, 25, dtype=torch.long)).tolist())
        commands.call("an id outside", lambda: built(torch.full((1, 2), 96)).tolist())
        commands.call("a negative id", lambda: built(torch.full((1, 2), -1)).tolist())
        commands.call("a wrong shape", lambda: _write_wrong(model, (2, 2), 1.0))
        commands.call("too large for its dtype", lambda: _write_wrong(model, (96, 16), 1e39))


def _write_wrong(model: Any, shape: tuple[int, ...], value: float) -> None:
    import torch

    from vpmoe.export.folder import write_export

    tensors = tensors_of(model)
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    tensors["output_layer.weight"] = torch.full(shape, value, dtype=torch.float64)
    write_export(
        Path("wrong"), model, None, 1, dtypes, lambda names: {name: tensors[name] for name in names}
    )
