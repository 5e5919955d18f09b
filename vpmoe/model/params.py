"""`vpmoe params`: the parameter table of a preset, counted from its dimensions."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vpmoe.shipped import shipped


@dataclass(frozen=True)
class ParameterTable:
    """Parameters by component.

    Attributes:
        components: component to number of parameters, in the order of the forward pass.
        active: parameters that one token meets: all but the experts it is not routed to.
    """

    components: Mapping[str, int]
    active: int

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.components.values())


def count_parameters(fields: Mapping[str, Any]) -> ParameterTable:
    """Counts the parameters of a model.

    Args:
        fields: a preset's flat fields (`vpmoe.config.Preset.fields`), named as Megatron's flags;
            schedules of layers may be parsed already.

    Returns:
        The table; `embeddings` are input and output together, `norms` the layers' and the final
        ones, and attention includes its QK-norm and softmax offsets.
    """
    hidden, channels = fields["hidden_size"], fields["kv_channels"]
    layers = range(1, fields["num_layers"] + 1)
    moe = _moe_layers(fields)
    local = [n for n in layers if _is_local(fields, n)]
    tpa = bool(fields.get("use_tpa"))
    qkv_rows = (fields["num_attention_heads"] + 2 * fields["num_query_groups"]) * channels
    # A linear layer's inputs, and one more for its bias.
    width = hidden + (not fields.get("disable_bias_linear"))
    full = _attention(fields) + width * qkv_rows
    factored = _attention(fields) + hidden * _tpa_rows(fields) if tpa else full
    experts = len(moe) * fields.get("num_experts", 0)
    expert = _mlp(fields, fields.get("moe_ffn_hidden_size", fields["ffn_hidden_size"]))
    components = {
        "embeddings": 2 * fields["padded_vocab_size"] * hidden,
        "grapem": _grapem(fields),
        "local_attention": len(local) * factored,
        "global_attention": (len(layers) - len(local)) * full,
        "dense_ffn": (len(layers) - len(moe)) * _mlp(fields, fields["ffn_hidden_size"]),
        "routers": experts * width,
        "experts": experts * expert,
        "shared_experts": len(moe)
        * 2
        * hidden
        * fields.get("moe_shared_expert_intermediate_size", 0),
        "norms": (2 * len(layers) + 1) * hidden,
    }
    idle = experts - len(moe) * fields.get("moe_router_topk", 2)
    return ParameterTable(components, sum(components.values()) - idle * expert)


def _attention(fields: Mapping[str, Any]) -> int:
    """Output projection with its bias, QK-norm and softmax offsets of one layer."""
    heads, channels = fields["num_attention_heads"], fields["kv_channels"]
    norm = 2 * channels if fields.get("qk_layernorm") else 0
    offset = heads if fields.get("softmax_type") == "learnable" else 0
    bias = 0 if fields.get("disable_bias_linear") else fields["hidden_size"]
    return int(heads * channels * fields["hidden_size"] + bias + norm + offset)


def _mlp(fields: Mapping[str, Any], width: int) -> int:
    """The two matrices, and biases, of a feed-forward layer or expert."""
    hidden = int(fields["hidden_size"])
    biases = 0 if fields.get("disable_bias_linear") else width + hidden
    return 2 * hidden * width + biases


def _tpa_rows(fields: Mapping[str, Any]) -> int:
    """Rows of TPA's six factor matrices together."""
    q_rank, rank = fields["tpa_q_rank"], fields["tpa_rank"]
    a = fields["num_attention_heads"] * q_rank + 2 * fields["num_query_groups"] * rank
    return int(a + (q_rank + 2 * rank) * fields["kv_channels"])


def _grapem(fields: Mapping[str, Any]) -> int:
    if fields.get("position_embedding_type") != "grapem":
        return 0
    sets = fields["num_query_groups"] if fields.get("grapem_per_head") else 1
    return int(sets * fields["kv_channels"] // 2)


def _is_local(fields: Mapping[str, Any], layer_number: int) -> bool:
    if fields.get("window_size") is None:
        return False
    skip = _schedule(fields, "window_attn_skip_freq")
    if isinstance(skip, list):
        return bool(skip[layer_number - 1])
    return skip is None or layer_number % skip != 0


def _moe_layers(fields: Mapping[str, Any]) -> list[int]:
    if fields.get("num_experts") is None:
        return []
    schedule = _schedule(fields, "moe_layer_freq")
    numbers = range(1, fields["num_layers"] + 1)
    if isinstance(schedule, list):
        return [number for number in numbers if schedule[number - 1]]
    return [number for number in numbers if (number - 1) % (schedule or 1) == 0]


def _schedule(fields: Mapping[str, Any], name: str) -> Any:
    """Returns a schedule of layers: None, an n of every n-th, or a list with 0 or 1 of each."""
    from vpmoe.config import parse_field

    value = fields.get(name)
    return parse_field(name, value) if isinstance(value, str) else value


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `vpmoe params`."""
    parser = subparsers.add_parser(
        "params",
        help="count a preset's parameters by component",
        description="Counts the parameters of a preset by component, total and active per token.",
    )
    parser.add_argument(
        "--config", type=shipped, required=True, metavar="FILE", help="a preset, configs/*.toml"
    )
    parser.add_argument(
        "--optimizer",
        action="store_true",
        help="list what `--optimizer normuon` does with each parameter instead",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and no more")
    parser.set_defaults(func=run)


def run(options: argparse.Namespace) -> int:
    """Runs `vpmoe params`; returns 0, or 2 for an unusable preset."""
    import sys

    from vpmoe.config import load_preset

    try:
        preset = load_preset(options.config)
        if options.optimizer:
            return _print_routes(preset.to_flags(), options.json)
    except ValueError as error:  # of the preset, or of what the report would build of it
        print(f"vpmoe params: {error}", file=sys.stderr)
        return 2
    table = count_parameters(preset.fields)
    if options.json:
        print(
            json.dumps(
                {
                    "total": table.total,
                    "active": table.active,
                    "components": dict(table.components),
                }
            )
        )
    else:
        print(render(preset.name, table))
    return 0


def _print_routes(flags: list[str], as_json: bool) -> int:
    from vpmoe.optimizer import report

    routes = report.routing_report(flags)
    print(json.dumps([r.as_dict() for r in routes]) if as_json else report.render(routes))
    return 0


def render(name: str, table: ParameterTable) -> str:
    """The table as text."""
    embeddings = table.components["embeddings"]
    lines = [name]
    lines += [f"  {component:<18}{count:>16,}" for component, count in table.components.items()]
    lines += [
        f"  {'total':<18}{table.total:>16,}",
        f"  {'active per token':<18}{table.active:>16,}"
        f"  ({table.active - embeddings:,} without embeddings)",
    ]
    return "\n".join(lines)
