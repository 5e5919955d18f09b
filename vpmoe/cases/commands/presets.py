"""Presets: what the shipped ones say, and how a bad one is refused, by `vpmoe params`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vpmoe.cases.commands.session import Session

Tables = Mapping[str, Mapping[str, Any]]

# A small preset of the case's own, with what every check asks about.
BASE: Tables = {
    "model": {
        "num_layers": 4,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "group_query_attention": True,
        "num_query_groups": 2,
        "kv_channels": 8,
        "ffn_hidden_size": 48,
        "seq_length": 64,
        "max_position_embeddings": 64,
        "normalization": "RMSNorm",
        "norm_epsilon": 1e-5,
        "squared_relu": True,
        "disable_bias_linear": True,
        "untie_embeddings_and_output_weights": True,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "padded_vocab_size": 201_088,
        "tokenizer_type": "O200kHarmonyTokenizer",
    },
    "attention": {
        "position_embedding_type": "grapem",
        "grape_a": True,
        "no_rope_freq": 4,
        "window_size": 16,
        "window_attn_skip_freq": 4,
        "use_tpa": True,
        "tpa_rank": 2,
        "tpa_q_rank": 3,
        "softmax_type": "learnable",
    },
    "experts": {
        "num_experts": 8,
        "moe_layer_freq": "([0]+[1]*3)",
        "moe_ffn_hidden_size": 24,
        "moe_shared_expert_intermediate_size": 40,
        "moe_router_topk": 2,
        "moe_router_num_groups": 2,
        "moe_router_group_topk": 1,
        "moe_router_score_function": "sigmoid",
        "moe_router_load_balancing_type": "seq_aux_loss",
        "moe_router_dtype": "fp32",
    },
    "optimizer": {
        "optimizer": "normuon",
        "lr": 4e-3,
        "min_lr": 5e-4,
        "normuon_aux_lr": 2e-3,
        "normuon_aux_min_lr": 2e-4,
        "weight_decay": 0.1,
        "lr_decay_iters": 90,
    },
    "training": {
        "micro_batch_size": 2,
        "global_batch_size": 4,
        "train_iters": 30,
        "reset_position_ids": True,
        "reset_attention_mask": True,
    },
}

# Name -> fields that are set over the base's, None leaving one out: each is refused.
_REFUSED: Mapping[str, Mapping[str, Any]] = {
    "a missing field": {"model.hidden_size": None},
    "an unknown field": {"attention.tpa_rnk": 2},
    "a field of no likeness": {"attention.zzz": 1},
    "a text for a number": {"model.hidden_dropout": "none"},
    "a fraction for a whole number": {"model.num_layers": 4.0},
    "a number for a switch": {"attention.use_tpa": 1},
    "a number for a text": {"model.tokenizer_type": 4},
    "a wrong list": {"optimizer.rampup_batch_size": [2, "x", 8]},
    "a number for a list": {"optimizer.rampup_batch_size": True},
    "no choice": {"attention.softmax_type": "sharp"},
    "code": {"experts.moe_layer_freq": "__import__(1)"},
    "code that is cut off": {"experts.moe_layer_freq": "([0]"},
    "a value that is a flag": {"model.tokenizer_type": "-x"},
    "a field twice": {"attention.lr": 1e-3},
    "a field under two names": {
        "training.save_interval": 5,
        "training.persistent_save_interval": 6,
    },
    "zero layers": {"model.num_layers": 0},
    "a negative batch": {"training.global_batch_size": -4},
    "another vocabulary": {"model.padded_vocab_size": 201_216},
    "another tokenizer": {"model.tokenizer_type": "NullTokenizer"},
    "groups that do not divide": {"model.num_query_groups": 3},
    "an odd head": {"model.kv_channels": 7},
    "groups without the switch": {"model.group_query_attention": False},
    "a sequence without positions": {"model.seq_length": 128},
    "a window over all": {"attention.window_size": 64},
    "a schedule without a window": {
        "attention.window_size": None,
        "attention.use_tpa": False,
        "attention.tpa_rank": None,
        "attention.tpa_q_rank": None,
    },
    "a schedule beyond the layers": {"attention.window_attn_skip_freq": 5},
    "TPA without a window": {
        "attention.window_size": None,
        "attention.window_attn_skip_freq": None,
    },
    "TPA without a rank": {"attention.tpa_q_rank": None},
    "TPA with biases": {
        "model.disable_bias_linear": None,
        "experts.moe_shared_expert_intermediate_size": None,
    },
    "a rank without TPA": {"attention.use_tpa": False},
    "rotation and ALiBi": {"attention.no_rope_freq": 2},
    "rotation everywhere": {"attention.no_rope_freq": None},
    "shared experts with biases": {
        "model.disable_bias_linear": None,
        "attention.use_tpa": False,
        "attention.tpa_rank": None,
        "attention.tpa_q_rank": None,
    },
    "half a limit": {"experts.moe_router_group_topk": None},
    "the other half": {"experts.moe_router_num_groups": None},
    "groups of unequal size": {"experts.moe_router_num_groups": 3},
    "more groups than there are": {"experts.moe_router_group_topk": 3},
    "more experts than in the groups": {"experts.moe_router_topk": 5},
    "no expert to score by": {"experts.moe_router_topk": 1, "experts.moe_router_group_topk": 2},
    "more experts than score": {"experts.moe_router_group_score_topk": 5},
    "scores without groups": {
        "experts.moe_router_num_groups": None,
        "experts.moe_router_group_topk": None,
        "experts.moe_router_group_score_topk": 2,
    },
    "more experts than there are": {
        "experts.moe_router_num_groups": None,
        "experts.moe_router_group_topk": None,
        "experts.moe_router_topk": 9,
    },
    "a schedule of twos": {"experts.moe_layer_freq": "[2]*4"},
    "a long schedule": {"experts.moe_layer_freq": "([0]+[1]*4)"},
    "a minimum above the rate": {"optimizer.min_lr": 1.0},
    "batches that do not divide": {"training.micro_batch_size": 3},
}
# Files that are no preset.
_FILES: Mapping[str, bytes] = {
    "no TOML": b"[model]\nnum_layers = 4\nnum_layers = 5\n",
    "no UTF-8": b"\xff = [",
    "a field outside": b"num_layers = 4\n",
    "an unknown table": b"\n[exparts]\nnum_experts = 4\n",
    "a table that is a number": b"model = 3\n",
    "a table in a line": b"model = {num_layers = 'x'}\n",
    "nothing": b"",
}
# Name -> fields: each is another model, whose parameters are counted.
_COUNTED: Mapping[str, Mapping[str, Any]] = {
    "base": {},
    "frozen frequencies": {"attention.grapem_learnable_freq": False},
    "biases": {
        "model.disable_bias_linear": None,
        "attention.use_tpa": False,
        "attention.tpa_rank": None,
        "attention.tpa_q_rank": None,
        "experts.moe_shared_expert_intermediate_size": None,
    },
    "no window": {
        "attention.window_size": None,
        "attention.window_attn_skip_freq": None,
        "attention.use_tpa": False,
        "attention.tpa_rank": None,
        "attention.tpa_q_rank": None,
        "attention.grape_a": False,
    },
    "all local": {
        "attention.window_attn_skip_freq": None,
        "attention.no_rope_freq": None,
        "attention.grape_a": False,
    },
    "a listed window": {
        "attention.window_attn_skip_freq": "[1,0,1,0]",
        "attention.no_rope_freq": "[0,1,0,1]",
        "attention.grape_a_with_rotation": True,
    },
    "every second layer": {"experts.moe_layer_freq": 2},
    "every layer": {"experts.moe_layer_freq": None},
    "dense": {f"experts.{name}": None for name in BASE["experts"]},
    "frequencies a head": {"attention.grapem_per_head": True, "model.qk_layernorm": True},
    "rope": {"attention.position_embedding_type": "rope", "attention.softmax_type": None},
}
# Words beside `--config preset.toml`: what wins.
_OVERRIDING: Mapping[str, list[str]] = {
    "alone": ["--config", "preset.toml"],
    "flags after": ["--config", "preset.toml", "--lr", "0.5", "--seed", "7"],
    "flags before": ["--lr", "0.5", "--config", "preset.toml"],
    "with an equals sign": ["--config=preset.toml", "--lr=0.5"],
    "another optimizer": ["--config", "preset.toml", "--optimizer", "adam"],
    "another optimizer with an equals sign": ["--optimizer=adam", "--config", "preset.toml"],
    "the same optimizer": ["--config", "preset.toml", "--optimizer", "normuon"],
    "another tokenizer": ["--config", "preset.toml", "--legacy-tokenizer"],
    "a lower rate": ["--config", "preset.toml", "--lr", "1e-4", "--normuon-aux-lr=5e-5"],
    "a rate at the minimum": ["--config", "preset.toml", "--lr", "5e-4"],
    "a rate twice": ["--config", "preset.toml", "--lr", "1e-4", "--lr", "1e-2"],
    "a rate of words": ["--config", "preset.toml", "--lr", "low"],
    "no preset": ["--lr", "0.5"],
    "what is shipped": ["--config", "configs/vpmoe-tiny.toml"],
    "no file": ["--config"],
    "a flag for a file": ["--config", "--lr"],
    "two presets": ["--config", "preset.toml", "--config", "other.toml"],
    "an unknown preset": ["--config", "configs/none.toml"],
}


def preset(edits: Mapping[str, Any] | None = None) -> str:
    """The base preset as TOML.

    Args:
        edits: `table.field` -> its value, or None to leave it out.

    Returns:
        The text.
    """
    tables: dict[str, dict[str, Any]] = {name: dict(fields) for name, fields in BASE.items()}
    for place, value in (edits or {}).items():
        table, _, field = place.partition(".")
        if value is None:
            del tables[table][field]
        else:
            tables[table][field] = value
    lines = []
    for table, fields in tables.items():
        lines.append(f"[{table}]")
        # JSON spells numbers, texts, switches and lists as TOML does.
        lines += [f"{field} = {json.dumps(value)}" for field, value in fields.items()]
        lines.append("")
    return "\n".join(lines)


def record_presets(commands: Session) -> None:
    """Records the shipped presets, their parameters, every refusal and every overriding."""
    from vpmoe.config import expand_preset_flags
    from vpmoe.shipped import shipped, shipped_names

    params = ("params", "--config")
    commands.call("shipped", shipped_names)
    for name in shipped_names():
        if name.endswith(".toml"):
            commands.vpmoe(f"params of {name}", *params, name)
            commands.call(f"fields of {name}", _fields, shipped(name))

    for name, edits in _COUNTED.items():
        Path("preset.toml").write_text(preset(edits))
        commands.vpmoe(f"params of {name}", *params, "preset.toml", "--json")
        commands.vpmoe(f"routes of {name}", *params, "preset.toml", "--optimizer", "--json")
    Path("preset.toml").write_text(preset())
    commands.vpmoe("params", *params, "preset.toml")
    commands.vpmoe("routes", *params, "preset.toml", "--optimizer")
    commands.vpmoe("no preset", "params")

    for name, edits in _REFUSED.items():
        Path("bad.toml").write_text(preset(edits))
        commands.vpmoe(f"refused: {name}", *params, "bad.toml")
    for name, content in _FILES.items():
        Path("bad.toml").write_bytes(content)
        commands.vpmoe(f"refused: {name}", *params, "bad.toml")
    Path("folder").mkdir()
    commands.vpmoe("refused: a folder", *params, "folder")
    commands.vpmoe("refused: no file", *params, "none.toml")

    for name, words in _OVERRIDING.items():
        commands.call(f"flags: {name}", expand_preset_flags, words)


def _fields(path: Path) -> Mapping[str, Any]:
    from vpmoe.config import load_preset

    return load_preset(path).fields
