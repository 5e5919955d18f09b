"""What an exported model is: every number its forward pass depends on, and its tensors' shapes.

This is the `architecture` object of an export's config.json. Nothing has a default: a key that is
missing or unknown is refused, so that a reader never has to guess.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

SOFTMAXES = ("vanilla", "off-by-one", "learnable")
POSITIONS = ("grapem", "rope", "none")
SCORES = ("sigmoid", "softmax")


class ExportError(ValueError):
    """An export or a checkpoint that cannot be used; the message names the file and what in it."""


@dataclass(frozen=True)
class TensorProduct:
    """Ranks of TPA's factors: `rank` of keys and values, `q_rank` of queries."""

    rank: int
    q_rank: int


@dataclass(frozen=True)
class Experts:
    """The mixture of an MoE layer.

    Attributes:
        count: routed experts.
        ffn_hidden_size: width of one.
        shared_ffn_hidden_size: width of the shared expert, 0 for none.
        topk: experts a token.
        groups: groups that the experts form in order, 1 without group-limited routing.
        group_topk: groups that a token may choose from.
        group_score_topk: a group scores the sum of this many of its best experts.
        score_function: "sigmoid" (scores are divided by the sum of the chosen) or "softmax".
        pre_softmax: softmax over all experts, before the choice; else over the chosen ones.
        scaling_factor: what the weights of the chosen experts are multiplied by.
        bias: whether a bias a expert is added to the scores for the choice alone.
    """

    count: int
    ffn_hidden_size: int
    shared_ffn_hidden_size: int
    topk: int
    groups: int
    group_topk: int
    group_score_topk: int
    score_function: str
    pre_softmax: bool
    scaling_factor: float
    bias: bool


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        window: tokens seen, the current one included; None sees all before it.
        tpa: queries, keys and values are TPA's, instead of one projection's.
        rotates: queries and keys are rotated.
        alibi: the logits get ALiBi's bias.
        experts: the feed-forward is the mixture, instead of one dense MLP.
    """

    window: int | None
    tpa: bool
    rotates: bool
    alibi: bool
    experts: bool


@dataclass(frozen=True)
class Architecture:
    """A vpMoE model, pre-norm with RMSNorm, without biases, squared ReLU in every MLP.

    Attributes:
        vocab_size: rows of the embedding and of the output layer, which are not tied.
        max_sequence_length: longest sequence.
        hidden_size: of the residual stream.
        num_attention_heads: query heads.
        num_query_groups: key and value heads.
        kv_channels: size of a head.
        ffn_hidden_size: width of a dense MLP.
        norm_epsilon: of every RMSNorm.
        qk_norm: queries and keys are normalised, before the rotation.
        softmax: "vanilla", "off-by-one" (a logit 0 takes part) or "learnable" (one logit a head).
        position_embedding: "grapem" (frequencies are a tensor), "rope" or "none".
        rotary_base: of RoPE, and of GRAPE-M's initial frequencies.
        grapem_log_freq_scale: s in frequency = exp(phi / s).
        grapem_per_head: frequencies of their own for each key and value head.
        tpa: ranks of the layers with TPA; None if there are none.
        experts: the mixture of the layers with experts; None if there are none.
        layers: in order.
    """

    vocab_size: int
    max_sequence_length: int
    hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    ffn_hidden_size: int
    norm_epsilon: float
    qk_norm: bool
    softmax: str
    position_embedding: str
    rotary_base: int
    grapem_log_freq_scale: float
    grapem_per_head: bool
    tpa: TensorProduct | None
    experts: Experts | None
    layers: tuple[Layer, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self) | {"layers": [dataclasses.asdict(x) for x in self.layers]}


def parse_architecture(document: Any) -> Architecture:
    """Reads `architecture` of a config.json.

    Args:
        document: what JSON holds.

    Returns:
        The architecture.

    Raises:
        ExportError: a key is missing, unknown, of the wrong type, or contradicts another.
    """
    architecture: Architecture = _parse(Architecture, document, "architecture")
    _check(architecture)
    return architecture


def tensor_shapes(model: Architecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a model, in the order of the forward pass.

    Names are the checkpoint's: layers and experts are counted over the whole model.
    """
    hidden, heads, groups = model.hidden_size, model.num_attention_heads, model.num_query_groups
    channels = model.kv_channels
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.word_embeddings.weight": (model.vocab_size, hidden)
    }
    if model.position_embedding == "grapem":
        sets = groups if model.grapem_per_head else 1
        shapes["grapem.phi"] = (sets * channels // 2,)
    for number, layer in enumerate(model.layers):
        prefix = f"decoder.layers.{number}."
        attention = prefix + "self_attention."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        if layer.tpa:
            assert model.tpa is not None
            rank, q_rank = model.tpa.rank, model.tpa.q_rank
            for name, rows in (
                ("a_q", heads * q_rank),
                ("a_k", groups * rank),
                ("a_v", groups * rank),
                ("b_q", q_rank * channels),
                ("b_k", rank * channels),
                ("b_v", rank * channels),
            ):
                shapes[f"{attention}linear_qkv.{name}"] = (rows, hidden)
        else:
            rows = (heads + 2 * groups) * channels
            shapes[attention + "linear_qkv.weight"] = (rows, hidden)
        if model.qk_norm:
            shapes[attention + "q_layernorm.weight"] = (channels,)
            shapes[attention + "k_layernorm.weight"] = (channels,)
        if model.softmax == "learnable":
            shapes[attention + "core_attention.softmax_offset"] = (heads,)
        shapes[attention + "linear_proj.weight"] = (hidden, heads * channels)
        shapes[prefix + "pre_mlp_layernorm.weight"] = (hidden,)
        shapes |= _feed_forward(model, layer, prefix + "mlp.")
    shapes["decoder.final_layernorm.weight"] = (hidden,)
    shapes["output_layer.weight"] = (model.vocab_size, hidden)
    return shapes


def _feed_forward(model: Architecture, layer: Layer, prefix: str) -> dict[str, tuple[int, ...]]:
    hidden = model.hidden_size
    if not layer.experts:
        return _mlp(prefix, model.ffn_hidden_size, hidden)
    experts = model.experts
    assert experts is not None
    count, width = experts.count, experts.ffn_hidden_size
    shapes: dict[str, tuple[int, ...]] = {prefix + "router.weight": (count, hidden)}
    if experts.bias:
        shapes[prefix + "router.expert_bias"] = (count,)
    shapes[prefix + "experts.experts.linear_fc1.weight"] = (count, width, hidden)
    shapes[prefix + "experts.experts.linear_fc2.weight"] = (count, hidden, width)
    if experts.shared_ffn_hidden_size:
        shapes |= _mlp(prefix + "shared_experts.", experts.shared_ffn_hidden_size, hidden)
    return shapes


def _mlp(prefix: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        prefix + "linear_fc1.weight": (width, hidden),
        prefix + "linear_fc2.weight": (hidden, width),
    }


def _parse(kind: Any, value: Any, where: str) -> Any:
    """A value of a declared type, from JSON."""
    if kind in (int, float, bool, str):
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise ExportError(f"{where}: expected {kind.__name__}, found {value!r}")
        return value
    if dataclasses.is_dataclass(kind):
        return _parse_object(kind, value, where)
    if kind == tuple[Layer, ...]:
        if not isinstance(value, list):
            raise ExportError(f"{where}: expected a list, found {value!r}")
        return tuple(_parse(Layer, item, f"{where}[{i}]") for i, item in enumerate(value))
    # The one other form is `X | None`.
    inner = next(t for t in kind.__args__ if t is not type(None))
    return None if value is None else _parse(inner, value, where)


def _parse_object(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ExportError(f"{where}: expected an object, found {value!r}")
    types = get_type_hints(kind)
    for name in value:
        if name not in types:
            raise ExportError(f"{where}.{name}: unknown key")
    for name in types:
        if name not in value:
            raise ExportError(f"{where}.{name}: missing")
    return kind(**{name: _parse(types[name], value[name], f"{where}.{name}") for name in types})


def _check(model: Architecture) -> None:
    """Refuses contradictions."""
    _check_positive("architecture", model)
    _check_choice("softmax", model.softmax, SOFTMAXES)
    _check_choice("position_embedding", model.position_embedding, POSITIONS)
    if not model.layers:
        raise ExportError("architecture.layers: empty")
    if model.num_attention_heads % model.num_query_groups:
        raise ExportError(
            f"architecture.num_query_groups: {model.num_query_groups} does not divide "
            f"{model.num_attention_heads} heads"
        )
    if model.position_embedding != "none" and model.kv_channels % 2:
        raise ExportError(f"architecture.kv_channels: {model.kv_channels} is odd and cannot rotate")
    for number, layer in enumerate(model.layers):
        where = f"architecture.layers[{number}]"
        _check_positive(where, layer)
        if layer.tpa and model.tpa is None:
            raise ExportError(f"{where}.tpa: true, but architecture.tpa is null")
        if layer.experts and model.experts is None:
            raise ExportError(f"{where}.experts: true, but architecture.experts is null")
        if layer.rotates and model.position_embedding == "none":
            raise ExportError(f"{where}.rotates: true, but architecture.position_embedding is none")
    if model.tpa is not None:
        _check_positive("architecture.tpa", model.tpa)
    if model.experts is not None:
        _check_experts(model.experts)


def _check_experts(experts: Experts) -> None:
    where = "architecture.experts"
    _check_positive(where, experts, zero=("shared_ffn_hidden_size",))
    _check_choice("experts.score_function", experts.score_function, SCORES)
    if experts.count % experts.groups or experts.group_topk > experts.groups:
        raise ExportError(
            f"{where}.groups: {experts.groups} groups, {experts.group_topk} of them chosen, of "
            f"{experts.count} experts"
        )
    if experts.topk > experts.group_topk * experts.count // experts.groups:
        raise ExportError(
            f"{where}.topk: {experts.topk} exceeds the experts in {experts.group_topk} of "
            f"{experts.groups} groups"
        )
    if experts.group_score_topk > experts.count // experts.groups:
        raise ExportError(
            f"{where}.group_score_topk: {experts.group_score_topk} exceeds the experts of a group, "
            f"{experts.count // experts.groups}"
        )
    if experts.bias and experts.score_function != "sigmoid":
        raise ExportError(f"{where}.bias: only sigmoid scores have one")


def _check_positive(where: str, value: Any, zero: tuple[str, ...] = ()) -> None:
    for name, number in vars(value).items():
        if type(number) in (int, float) and (number < 0 or (number == 0 and name not in zero)):
            raise ExportError(f"{where}.{name}: must be positive, found {number}")


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ExportError(f"architecture.{name}: {value!r} is none of {', '.join(known)}")
