"""Presets: one TOML file that says what a vpMoE model is and how it is trained.

A preset holds Megatron's own flag names in snake_case, grouped in tables for the reader. Loading
checks every field's type and then the fields together; `Preset.to_flags()` renders the Megatron
command line. Flags that a user adds on the command line come later and win.

    preset = load_preset(Path("configs/vpmoe-tiny.toml"))
    preset.to_flags()        # ['--num-layers', '4', '--hidden-size', '64', ...]
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpmoe.shipped import shipped, shipped_names

PADDED_VOCAB_SIZE = 201088

_NORMUON_ONLY = ("normuon_", "polar_express_")
_TOKENIZER_ONLY = ("tokenizer_type", "padded_vocab_size")
_RATES = (("lr", "min_lr"), ("normuon_aux_lr", "normuon_aux_min_lr"))

# Table -> field -> type. A field is the Megatron (or vpMoE) flag of the same name.
_FIELDS: dict[str, dict[str, type]] = {
    "model": {
        "num_layers": int,
        "hidden_size": int,
        "num_attention_heads": int,
        "group_query_attention": bool,
        "num_query_groups": int,
        "kv_channels": int,
        "ffn_hidden_size": int,
        "seq_length": int,
        "max_position_embeddings": int,
        "normalization": str,
        "norm_epsilon": float,
        "qk_layernorm": bool,
        "squared_relu": bool,
        "disable_bias_linear": bool,
        "untie_embeddings_and_output_weights": bool,
        "attention_dropout": float,
        "hidden_dropout": float,
        "init_method_std": float,
        "padded_vocab_size": int,
        "tokenizer_type": str,
    },
    "attention": {
        "position_embedding_type": str,
        "rotary_base": int,
        "grapem_log_freq_scale": float,
        "grape_a": bool,
        "no_rope_freq": int,
        "window_size": int,
        "window_attn_skip_freq": int,
        "use_tpa": bool,
        "tpa_rank": int,
        "tpa_q_rank": int,
        "softmax_type": str,
    },
    "experts": {
        "num_experts": int,
        "moe_layer_freq": str,
        "moe_ffn_hidden_size": int,
        "moe_shared_expert_intermediate_size": int,
        "moe_router_topk": int,
        "moe_router_num_groups": int,
        "moe_router_group_topk": int,
        "moe_router_group_score_topk": int,
        "moe_router_score_function": str,
        "moe_router_topk_scaling_factor": float,
        "moe_router_load_balancing_type": str,
        "moe_aux_loss_coeff": float,
        "moe_router_enable_expert_bias": bool,
        "moe_router_bias_update_rate": float,
        "moe_router_dtype": str,
    },
    "optimizer": {
        "optimizer": str,
        "lr": float,
        "min_lr": float,
        "decoupled_lr": float,
        "normuon_aux_lr": float,
        "normuon_aux_min_lr": float,
        "normuon_momentum": float,
        "normuon_beta2": float,
        "polar_express_safety_factor": float,
        "adam_beta1": float,
        "adam_beta2": float,
        "adam_eps": float,
        "weight_decay": float,
        "clip_grad": float,
        "lr_decay_style": str,
        "lr_decay_iters": int,
        "lr_warmup_iters": int,
    },
    "training": {
        "micro_batch_size": int,
        "global_batch_size": int,
        "train_iters": int,
        "eval_interval": int,
        "eval_iters": int,
        "log_interval": int,
        "seed": int,
        "bf16": bool,
        "deterministic_mode": bool,
        "ckpt_format": str,
        "num_workers": int,
        "reset_position_ids": bool,
        "reset_attention_mask": bool,
        "no_one_logger": bool,
    },
}

_REQUIRED = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "ffn_hidden_size",
    "seq_length",
    "max_position_embeddings",
    "padded_vocab_size",
    "tokenizer_type",
)


class PresetError(ValueError):
    """A preset that cannot be used; the message names the file and the field."""


@dataclass(frozen=True)
class Preset:
    """A validated preset.

    Attributes:
        name: file name without its ending.
        fields: flat mapping from field to value, in the order of the file.
    """

    name: str
    fields: Mapping[str, Any]

    def to_flags(self) -> list[str]:
        """Renders the Megatron flags, in the file's order; `false` leaves a switch out."""
        flags: list[str] = []
        for field, value in self.fields.items():
            flag = "--" + field.replace("_", "-")
            if value is True:
                flags.append(flag)
            elif value is not False:
                flags += [flag, repr(value) if isinstance(value, float) else str(value)]
        return flags


def load_preset(path: Path) -> Preset:
    """Reads and validates a preset.

    Args:
        path: a TOML file, such as `configs/vpmoe-tiny.toml`.

    Returns:
        The preset with every field checked, alone and together with the others.

    Raises:
        PresetError: the file is missing or not TOML, or a field is unknown, missing, of the wrong
            type, or contradicts another one.
    """
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except FileNotFoundError as error:
        presets = [name for name in shipped_names() if name.endswith(".toml")]
        raise PresetError(f"{path}: no such preset; vpMoE ships {', '.join(presets)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PresetError(f"{path}: not valid TOML: {error}") from error
    try:
        fields = _flatten(document)
        _check_together(fields)
    except PresetError as error:
        raise PresetError(f"{path}: {error}") from None
    return Preset(name=path.stem, fields=fields)


def expand_preset_flags(argv: list[str]) -> list[str]:
    """Replaces `--config FILE` by the flags that the preset renders to.

    The preset's flags are put first, wherever `--config` stood, so that explicit flags win. Where
    they choose another optimizer, the preset's flags for NorMuon alone are left out, and its
    tokenizer's where they have Megatron build another. Where they set a learning rate below the
    preset's minimum, the minimum keeps the preset's ratio to it.

    Raises:
        PresetError: `--config` without a file, given twice, or an unusable preset.
    """
    rest: list[str] = []
    preset: Path | None = None
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != "--config":
            rest.append(word)
            continue
        file = value if equals else next(words, "")
        if not file or file.startswith("--"):
            raise PresetError("--config needs a file, such as configs/vpmoe-tiny.toml")
        if preset is not None:
            raise PresetError(f"--config is given twice: {preset} and {file}")
        preset = shipped(file)
    if preset is None:
        return rest
    loaded = load_preset(preset)
    if _last_value(rest, "--optimizer") not in (None, "normuon"):
        fields = {k: v for k, v in loaded.fields.items() if not k.startswith(_NORMUON_ONLY)}
        loaded = Preset(loaded.name, fields)
    if "--legacy-tokenizer" in rest:
        fields = {k: v for k, v in loaded.fields.items() if k not in _TOKENIZER_ONLY}
        loaded = Preset(loaded.name, fields)
    return Preset(loaded.name, _lowered_minima(loaded.fields, rest)).to_flags() + rest


def _lowered_minima(fields: Mapping[str, Any], words: list[str]) -> dict[str, Any]:
    """The fields, with minimum learning rates that stay below the maxima of the command line."""
    lowered = dict(fields)
    for high, low in _RATES:
        given = _last_value(words, "--" + high.replace("_", "-"))
        if given is None or low not in fields:
            continue
        try:
            rate = float(given)
        except ValueError:  # the parser refuses it
            continue
        if 0 < rate < fields[low]:
            lowered[low] = rate * fields[low] / fields.get(high, fields[low])
    return lowered


def _last_value(words: list[str], flag: str) -> str | None:
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == flag:
            found = value if equals else following
    return found


def _flatten(document: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for table, entries in document.items():
        known = _FIELDS.get(table)
        if known is None or not isinstance(entries, Mapping):
            raise PresetError(f"[{table}] is no table of a preset; tables: {', '.join(_FIELDS)}")
        for field, value in entries.items():
            kind = known.get(field)
            if kind is None:
                home = next((t for t, names in _FIELDS.items() if field in names), None)
                hint = f"; it belongs to [{home}]" if home else ""
                raise PresetError(f"[{table}] {field}: unknown field{hint}")
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind:
                raise PresetError(
                    f"[{table}] {field}: expected {kind.__name__}, found {value!r} "
                    f"({type(value).__name__})"
                )
            fields[field] = value
    return fields


def _check_together(fields: Mapping[str, Any]) -> None:
    for field in _REQUIRED:
        if field not in fields:
            raise PresetError(f"{field}: missing")
    positive = (
        name
        for name, value in fields.items()
        if type(value) is int and name not in ("seed", "num_workers", "lr_warmup_iters")
    )
    for field in positive:
        if fields[field] < (0 if field == "eval_iters" else 1):
            raise PresetError(f"{field}: must be positive, found {fields[field]}")

    if fields["padded_vocab_size"] != PADDED_VOCAB_SIZE:
        raise PresetError(
            f"padded_vocab_size: locked at {PADDED_VOCAB_SIZE}, found {fields['padded_vocab_size']}"
        )
    if fields["tokenizer_type"] != "O200kHarmonyTokenizer":
        raise PresetError(
            f"tokenizer_type: must be O200kHarmonyTokenizer, found {fields['tokenizer_type']!r}"
        )
    _divides(fields, "num_query_groups", "num_attention_heads")
    if fields["kv_channels"] % 2:
        raise PresetError(f"kv_channels: must be even to rotate, found {fields['kv_channels']}")
    if fields["num_query_groups"] < fields["num_attention_heads"] and not fields.get(
        "group_query_attention"
    ):
        raise PresetError("group_query_attention: must be true with fewer groups than heads")
    if fields["seq_length"] > fields["max_position_embeddings"]:
        raise PresetError(
            f"seq_length: {fields['seq_length']} exceeds max_position_embeddings "
            f"{fields['max_position_embeddings']}"
        )
    _check_attention(fields)
    _check_experts(fields)
    if fields.get("lr", 0.0) < fields.get("min_lr", 0.0):
        raise PresetError(f"min_lr: {fields['min_lr']} is above lr {fields.get('lr')}")
    if "global_batch_size" in fields:
        _divides(fields, "micro_batch_size", "global_batch_size")


def _check_attention(fields: Mapping[str, Any]) -> None:
    window = fields.get("window_size")
    if window is not None and window >= fields["seq_length"]:
        raise PresetError(
            f"window_size: {window} must be below seq_length {fields['seq_length']}; "
            "a window over the whole sequence is plain causal attention"
        )
    for field in ("window_attn_skip_freq", "no_rope_freq"):
        if field in fields and fields[field] > fields["num_layers"]:
            raise PresetError(
                f"{field}: every {fields[field]}th layer, but num_layers is {fields['num_layers']}"
            )
    if "window_attn_skip_freq" in fields and window is None:
        raise PresetError("window_attn_skip_freq: needs window_size")
    if fields.get("use_tpa"):
        for field in ("window_size", "tpa_rank", "tpa_q_rank"):
            if field not in fields:
                raise PresetError(f"{field}: required by use_tpa")
        if not fields.get("disable_bias_linear"):
            raise PresetError("disable_bias_linear: must be true, the factors of use_tpa have none")
    elif "tpa_rank" in fields or "tpa_q_rank" in fields:
        raise PresetError("tpa_rank, tpa_q_rank: set without use_tpa = true")
    rotates = fields.get("position_embedding_type") in ("rope", "grapem")
    if fields.get("grape_a") and rotates:
        skip, glob = fields.get("no_rope_freq"), fields.get("window_attn_skip_freq")
        if skip is None or skip != glob:
            raise PresetError(
                "no_rope_freq: must equal window_attn_skip_freq when grape_a is on, or global "
                f"layers rotate as well (no_rope_freq {skip}, window_attn_skip_freq {glob})"
            )


def _check_experts(fields: Mapping[str, Any]) -> None:
    if "num_experts" not in fields:
        return
    if "moe_shared_expert_intermediate_size" in fields and not fields.get("disable_bias_linear"):
        raise PresetError("disable_bias_linear: must be true, shared experts have no bias")
    groups = fields.get("moe_router_num_groups")
    group_topk = fields.get("moe_router_group_topk")
    if (groups is None) != (group_topk is None):
        raise PresetError("moe_router_num_groups, moe_router_group_topk: set both or neither")
    score_topk = fields.get("moe_router_group_score_topk")
    if groups is not None and group_topk is not None:
        _divides(fields, "moe_router_num_groups", "num_experts")
        size, topk = fields["num_experts"] // groups, fields.get("moe_router_topk", 2)
        if group_topk > groups:
            raise PresetError(f"moe_router_group_topk: {group_topk} of only {groups} groups")
        if topk > group_topk * size:
            raise PresetError(
                f"moe_router_topk: {topk} exceeds the experts in {group_topk} of {groups} groups"
            )
        if score_topk is None and group_topk > topk:
            raise PresetError(
                f"moe_router_group_topk: {group_topk} exceeds moe_router_topk {topk}, which leaves "
                "no expert to score a group by; set moe_router_group_score_topk"
            )
        if score_topk is not None and score_topk > size:
            raise PresetError(
                f"moe_router_group_score_topk: {score_topk}, but a group has {size} experts"
            )
    elif score_topk is not None:
        raise PresetError("moe_router_group_score_topk: set without groups")
    if fields.get("moe_router_topk", 2) > fields["num_experts"]:
        raise PresetError("moe_router_topk: more than num_experts")
    schedule = fields.get("moe_layer_freq")
    if schedule is not None:
        layers = _layer_schedule(schedule)
        if len(layers) != fields["num_layers"]:
            raise PresetError(
                f"moe_layer_freq: {schedule} names {len(layers)} layers, "
                f"num_layers is {fields['num_layers']}"
            )


def _layer_schedule(text: str) -> list[int]:
    """Evaluates the list arithmetic that Megatron's flag takes, `([0]+[1]*79)`, and no more."""

    def value(node: ast.expr) -> Any:
        match node:
            case ast.List(elts=elements):
                return [value(e) for e in elements]
            case ast.Constant(value=int(number)):
                return number
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return value(left) + value(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return value(left) * value(right)
        raise ValueError(ast.dump(node))

    try:
        layers = value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError) as error:
        raise PresetError(
            f"moe_layer_freq: expected list arithmetic such as ([0]+[1]*79), found {text!r}"
        ) from error
    if not isinstance(layers, list) or any(layer not in (0, 1) for layer in layers):
        raise PresetError(f"moe_layer_freq: expected zeros and ones, found {text!r}")
    return layers


def _divides(fields: Mapping[str, Any], divisor: str, number: str) -> None:
    if divisor in fields and fields[number] % fields[divisor]:
        raise PresetError(f"{divisor}: {fields[divisor]} does not divide {number} {fields[number]}")
