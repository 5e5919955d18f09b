"""The law of an export: the reference forward gives the training model's logits."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vpmoe.export.architecture import ExportError, tensor_shapes
from vpmoe.export.flags import architecture_of, flags_of
from vpmoe.export.generate import generate
from vpmoe.export.reference import ReferenceModel, alibi_slopes, positions_of

Build = Callable[..., AbstractContextManager[Any]]
# Both run in fp32 and are held against the reference in fp64: units of the largest logit's last
# place. Measured on one with every feature: 8 of the training model, 15 of the reference.
_BOUND = 64 * 2.0**-23

_ALIBI = ["--grape-a", "--grape-a-with-rotation", "--window-size", "6"]
_DENSE_KINDS = {
    "vpmoe": "attention",
    "per-head frequencies": ["attention", "--grapem-per-head"],
    "another frequency scale": ["attention", "--grapem-log-freq-scale", "5"],
    "softmax off by one": ["attention", "--softmax-type", "off-by-one"],
    "vanilla softmax": ["attention", "--softmax-type", "vanilla"],
    "all layers local": ["--position-embedding-type", "grapem", "--window-size", "3"],
    "a window of one": ["attention", "--window-size", "1"],
    "a list of windows": [
        "attention",
        "--window-attn-skip-freq",
        "[0,1,1,0]",
        "--no-rope-freq",
        "[1,0,0,1]",
    ],
    "no window": ["--position-embedding-type", "grapem"],
    "rotation and bias": [
        "--position-embedding-type",
        "grapem",
        *_ALIBI,
        "--window-attn-skip-freq",
        "2",
    ],
    "RoPE": ["--position-embedding-type", "rope", "--rotary-base", "500"],
    "no positions": ["--position-embedding-type", "none"],
    "one group a head": ["--position-embedding-type", "grapem", "--num-query-groups", "4"],
    "three heads": ["attention", "--num-attention-heads", "3", "--num-query-groups", "3"],
}
_MANY_GROUPS = (
    "--num-experts 16 --moe-router-num-groups 8 --moe-router-group-topk 4 --moe-router-topk 4"
)
_EXPERT_KINDS = {
    "vpmoe": [],
    "four groups of many": _MANY_GROUPS.split(),
    "groups scored by their best two": [
        *_MANY_GROUPS.split(),
        "--moe-router-group-score-topk",
        "2",
    ],
    "one expert": ["--moe-router-topk", "1", "--moe-router-group-topk", "1"],
    "every layer": ["--moe-layer-freq", "1"],
    "every other layer": ["--moe-layer-freq", "2"],
}
_NO_GROUPS = """
--num-experts 6 --moe-ffn-hidden-size 8 --moe-router-topk 3 --moe-aux-loss-coeff 1e-4
--moe-router-load-balancing-type aux_loss --moe-router-dtype fp32
"""
_PLAIN_ROUTERS = {
    "sigmoid without bias": ["--moe-router-score-function", "sigmoid"],
    "softmax of the chosen": ["--moe-router-score-function", "softmax"],
    "softmax of all": ["--moe-router-score-function", "softmax", "--moe-router-pre-softmax"],
}


def _flags(parts: dict[str, list[str]], words: Any) -> list[str]:
    words = [words] if isinstance(words, str) else words
    flags = list(parts["body"])
    for word in words:
        flags += parts.get(word, [word])
    return flags


def _inputs(length: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Three rows of tokens: one document, two, and many."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(64, (3, length), generator=generator)
    place = torch.arange(length)
    documents = torch.stack((torch.zeros_like(place), (place >= 9).long(), place // 5))
    return tokens, documents


def _errors(built: Any, dtype: torch.dtype = torch.float32) -> tuple[float, float]:
    """How far the training model's logits, and the reference's in fp32, are from fp64's."""
    model = architecture_of(built.args)
    tensors, inputs = built.tensors(), _inputs()
    truth = ReferenceModel(model, tensors, torch.float64)(*inputs)
    largest = float(truth.abs().max())
    assert math.isfinite(largest)
    assert largest > 0.5
    found = built.logits(*inputs), ReferenceModel(model, tensors)(*inputs)
    training, reference = (float((logits - truth).abs().max()) / largest for logits in found)
    return training, reference


@pytest.mark.parametrize("kind", _DENSE_KINDS)
def test_logits_of_every_kind_of_attention(
    build: Build, parts: dict[str, list[str]], kind: str
) -> None:
    with build(_flags(parts, _DENSE_KINDS[kind])) as built:
        training, reference = _errors(built)
    assert training <= _BOUND
    assert reference <= _BOUND


@pytest.mark.parametrize("kind", ["vpmoe", "RoPE", "rotation and bias"])
def test_in_fp64_both_are_the_same_function(
    build: Build, parts: dict[str, list[str]], kind: str
) -> None:
    with build(_flags(parts, _DENSE_KINDS[kind]), torch.float64) as built:
        training, _ = _errors(built)
    # phi stays what it is; RoPE's frequencies are Megatron's, in fp32.
    assert training <= (1e-6 if kind == "RoPE" else 1e-13)


@pytest.mark.parametrize("kind", _EXPERT_KINDS)
def test_logits_of_every_kind_of_experts(
    build: Build, parts: dict[str, list[str]], kind: str
) -> None:
    with build(_flags(parts, ["attention", "experts", *_EXPERT_KINDS[kind]])) as built:
        training, reference = _errors(built)
    assert training <= _BOUND
    assert reference <= _BOUND


@pytest.mark.parametrize("kind", _PLAIN_ROUTERS)
def test_logits_of_routers_without_groups(
    build: Build, parts: dict[str, list[str]], kind: str
) -> None:
    words = ["attention", *_NO_GROUPS.split(), *_PLAIN_ROUTERS[kind]]
    with build(_flags(parts, words)) as built:
        training, reference = _errors(built)
    assert training <= _BOUND
    assert reference <= _BOUND


@pytest.mark.parametrize("preset", ["vpmoe-tiny", "vpmoe-dev", "vpmoe-6b"])
def test_presets_survive_the_way_there_and_back(
    build: Build, repository: Path, preset: str
) -> None:
    from vpmoe.config import load_preset
    from vpmoe.model.meta import meta_model

    # Stacked experts, since modules of their own take seconds to build.
    stacked = ["--expert-kernel", "grouped"]
    flags = load_preset(repository / f"configs/{preset}.toml").to_flags()
    with meta_model([*flags, *stacked]) as (args, _):
        model = architecture_of(args)
    with meta_model([*flags_of(model), *stacked]) as (args, built):
        assert architecture_of(args) == model
        state = built.sharded_state_dict()
        found = {v.key: tuple(v.global_shape) for v in state.values() if hasattr(v, "global_shape")}
        assert {n: s for n, s in found.items() if "_extra_state" not in n} == tensor_shapes(model)


def test_the_6b_form_at_a_small_size(build: Build, repository: Path) -> None:
    """All that vpmoe-6b.toml says but its sizes, over 8 layers: two globals, 256 experts."""
    from vpmoe.config import load_preset

    flags = load_preset(repository / "configs/vpmoe-6b.toml").to_flags()
    flags = [word for word in flags if word != "--bf16"]
    sizes = """--num-layers 8 --hidden-size 32 --kv-channels 8 --ffn-hidden-size 16
        --seq-length 24 --max-position-embeddings 24 --window-size 6 --padded-vocab-size 64
        --moe-layer-freq ([0]+[1]*7) --moe-ffn-hidden-size 4
        --moe-shared-expert-intermediate-size 16 --micro-batch-size 1 --global-batch-size 1
        """
    with build([*flags, *sizes.split()]) as built:
        assert [layer.alibi for layer in architecture_of(built.args).layers] == [0, 0, 0, 1] * 2
        training, reference = _errors(built)
    assert training <= _BOUND
    assert reference <= _BOUND


def test_documents_are_as_if_alone(exported: Path) -> None:
    from vpmoe.export.folder import open_export

    export = open_export(exported)
    model = ReferenceModel(export.architecture, export.read(), torch.float64)
    tokens, documents = _inputs()
    packed = model(tokens, documents)
    alone = torch.cat((model(tokens[1:2, :9]), model(tokens[1:2, 9:])), dim=1)
    torch.testing.assert_close(packed[1:2], alone, rtol=0, atol=1e-12)


def test_positions_restart_where_documents_change() -> None:
    found = positions_of(torch.tensor([[4, 4, 7, 7, 7, 4], [0, 1, 2, 3, 3, 3]]))
    assert found.tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 0, 0, 1, 2]]


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 17])
def test_slopes_are_those_of_the_training(heads: int) -> None:
    from vpmoe.model.grape import alibi_slopes as of_training

    assert alibi_slopes(heads) == pytest.approx(of_training(heads), rel=1e-15)


def test_greedy_decoding_takes_the_likeliest_again_and_again(exported: Path) -> None:
    from vpmoe.export.folder import open_export

    export = open_export(exported)
    model = ReferenceModel(export.architecture, export.read())
    ids = generate(model, [3, 5, 8], 6)
    for end in range(3, 9):
        whole = [3, 5, 8, *ids]
        assert int(model(torch.tensor([whole[:end]]))[0, -1].argmax()) == whole[end]
    assert generate(model, [3, 5, 8], 6, stop=ids[2:3]) == ids[: ids.index(ids[2]) + 1]
    assert generate(model, [3, 5, 8], 1) == ids[:1]


def test_of_equal_logits_the_lowest_id_is_taken(exported: Path) -> None:
    from vpmoe.export.folder import open_export

    export = open_export(exported)
    tensors = export.read()
    tensors["output_layer.weight"] = torch.zeros_like(tensors["output_layer.weight"])
    assert generate(ReferenceModel(export.architecture, tensors), [3], 2) == [0, 0]


@pytest.mark.parametrize(
    ("prompt", "count", "words"),
    [
        ([], 1, "at least one"),
        ([1], 0, "at least 1"),
        ([1] * 20, 5, "longest sequence of 24"),
        ([64], 1, "outside the vocabulary 0..63"),
        ([-1], 1, "outside the vocabulary 0..63"),
    ],
)
def test_what_cannot_be_decoded_is_refused(
    exported: Path, prompt: list[int], count: int, words: str
) -> None:
    from vpmoe.export.folder import open_export

    export = open_export(exported)
    model = ReferenceModel(export.architecture, export.read())
    with pytest.raises(ValueError, match=words):
        generate(model, prompt, count)


def test_the_reference_takes_exactly_its_tensors(exported: Path) -> None:
    from vpmoe.export.folder import open_export

    export = open_export(exported)
    tensors, model = export.read(), export.architecture
    name = "decoder.layers.2.mlp.router.expert_bias"
    with pytest.raises(ExportError, match=f"{name}: missing"):
        ReferenceModel(model, {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(ExportError, match="tensor gate: unknown"):
        ReferenceModel(model, {**tensors, "gate": torch.ones(1)})
    with pytest.raises(ExportError, match=r"expert_bias: shape \[3\], expected \[8\]"):
        ReferenceModel(model, {**tensors, name: torch.ones(3)})
    with pytest.raises(ExportError, match=r"layernorm\.weight: unknown"):
        ReferenceModel(replace(model, qk_norm=False), tensors)


def test_the_reference_needs_neither_megatron_nor_the_training_model() -> None:
    code = (
        "import sys, vpmoe.export.reference, vpmoe.export.generate, vpmoe.export.folder\n"
        "bad = [m for m in sys.modules if m.split('.')[0] == 'megatron' "
        "or m.startswith(('vpmoe.model', 'vpmoe.runtime', 'vpmoe.data'))]\n"
        "print(bad)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
