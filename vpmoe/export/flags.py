"""Between a training's arguments and an export's architecture, both ways."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from vpmoe.export.architecture import Architecture, ExportError, Layer, parse_architecture

# What the reference computes without asking. Another value would be another forward pass.
ASSUMED: Mapping[str, Any] = {
    "normalization": "RMSNorm",
    "squared_relu": True,
    "swiglu": False,
    "quick_geglu": False,
    "openai_gelu": False,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "untie_embeddings_and_output_weights": True,
    "multi_latent_attention": False,
    "experimental_attention_variant": None,
    "linear_attention_freq": None,
    "qk_l2_norm": False,
    "attention_output_gate": False,
    "apply_residual_connection_post_layernorm": False,
    "apply_query_key_layer_scaling": False,
    "use_mup": False,
    "mtp_num_layers": None,
    "is_hybrid_model": False,
    "heterogeneous_layers_config_path": None,
    "heterogeneous_layers_config_encoded_json": None,
    "fp8": None,
    "fp4": None,
    "moe_shared_expert_gate": False,
    "moe_latent_size": None,
    "moe_apply_probs_on_input": False,
    "moe_expert_capacity_factor": None,
    "moe_expert_rank_capacity_factor": None,
    "moe_router_force_load_balancing": False,
    "moe_router_force_biased": None,
    "moe_enable_routing_replay": False,
}
# Of Megatron's RoPE, which GRAPE-M does not read.
ASSUMED_OF_ROPE: Mapping[str, Any] = {
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "rotary_seq_len_interpolation_factor": None,
    "use_rope_scaling": False,
}
# These balance by a loss; Megatron's others choose the experts in another way.
_BALANCING = ("none", "aux_loss", "seq_aux_loss", "global_aux_loss")


def architecture_of(args: argparse.Namespace) -> Architecture:
    """Reads the architecture from a training's arguments.

    Args:
        args: as a checkpoint holds them.

    Returns:
        The architecture.

    Raises:
        ExportError: a flag that the reference forward does not compute, or none of vpMoE's flags.
    """
    given = vars(args)
    rope = given.get("position_embedding_type") == "rope"
    for name, value in {**ASSUMED, **(ASSUMED_OF_ROPE if rope else {})}.items():
        if given.get(name, value) != value and not (value is None and not given[name]):
            raise ExportError(
                f"{_flag(name)}: {given[name]!r} is outside what an export describes; "
                f"train with {value!r}"
            )
    if args.num_experts:
        balancing = args.moe_router_load_balancing_type
        for kind in [balancing] if isinstance(balancing, str) else balancing:
            if kind not in _BALANCING:
                raise ExportError(
                    f"--moe-router-load-balancing-type: {kind!r} is outside what an export "
                    f"describes; train with one of {', '.join(_BALANCING)}"
                )
    try:
        return parse_architecture(_document(args))
    except AttributeError as error:
        raise ExportError(
            f"the training arguments have no {error.name}: no training of vpMoE saved them; "
            "give one that did"
        ) from error


def _document(args: argparse.Namespace) -> dict[str, Any]:
    numbers = range(1, args.num_layers + 1)
    window = None if args.window_size is None else int(args.window_size[0]) + 1
    local = [window is not None and _every(args.window_attn_skip_freq, n, True) for n in numbers]
    position = args.position_embedding_type
    rotates = [position != "none" and _every(args.no_rope_freq, n, False) for n in numbers]
    tpa = [bool(args.use_tpa and is_local) for is_local in local]
    mixed = [bool(args.num_experts) and _mixes(args.moe_layer_freq, n) for n in numbers]
    heads = args.num_attention_heads
    return {
        "vocab_size": args.padded_vocab_size,
        "max_sequence_length": args.max_position_embeddings,
        "hidden_size": args.hidden_size,
        "num_attention_heads": heads,
        "num_query_groups": args.num_query_groups if args.group_query_attention else heads,
        "kv_channels": args.kv_channels,
        "ffn_hidden_size": args.ffn_hidden_size,
        "norm_epsilon": args.layernorm_epsilon,
        "qk_norm": bool(args.qk_layernorm),
        "softmax": args.softmax_type,
        "position_embedding": position,
        "rotary_base": args.rotary_base,
        "grapem_log_freq_scale": args.grapem_log_freq_scale,
        "grapem_per_head": args.grapem_per_head,
        "tpa": {"rank": args.tpa_rank, "q_rank": args.tpa_q_rank} if any(tpa) else None,
        "experts": _experts(args) if any(mixed) else None,
        "layers": [
            {
                "window": window if local[i] else None,
                "tpa": tpa[i],
                "rotates": rotates[i],
                "alibi": bool(args.grape_a and not local[i]),
                "experts": mixed[i],
            }
            for i in range(args.num_layers)
        ],
    }


def _experts(args: argparse.Namespace) -> dict[str, Any]:
    grouped = bool(args.moe_router_group_topk)
    # Megatron's rule, where none is asked for.
    asked = args.moe_router_group_score_topk
    usual = args.moe_router_topk // args.moe_router_group_topk if grouped else 1
    return {
        "count": args.num_experts,
        "ffn_hidden_size": args.moe_ffn_hidden_size or args.ffn_hidden_size,
        "shared_ffn_hidden_size": args.moe_shared_expert_intermediate_size or 0,
        "topk": args.moe_router_topk,
        "groups": args.moe_router_num_groups if grouped else 1,
        "group_topk": args.moe_router_group_topk if grouped else 1,
        "group_score_topk": asked if grouped and asked is not None else usual,
        "score_function": args.moe_router_score_function,
        "pre_softmax": bool(args.moe_router_pre_softmax),
        "scaling_factor": float(args.moe_router_topk_scaling_factor or 1.0),
        "bias": bool(args.moe_router_enable_expert_bias),
    }


def _every(schedule: Any, number: int, listed: bool) -> bool:
    """Whether Megatron's schedule leaves a layer, counted from 1, as it is.

    An n leaves all but every n-th; a list says `listed` for those that it leaves; None leaves all.
    """
    if not schedule:
        return True
    if isinstance(schedule, int):
        return number % schedule != 0
    return bool(schedule[number - 1]) == listed


def _mixes(schedule: Any, number: int) -> bool:
    if isinstance(schedule, int):
        return (number - 1) % schedule == 0
    return bool(schedule[number - 1])


def flags_of(model: Architecture) -> list[str]:
    """Lists flags of `vpmoe pretrain` that build an architecture.

    Args:
        model: the architecture.

    Returns:
        The flags.

    Raises:
        ExportError: layers that no flags of vpMoE build.
    """
    flags = {
        "num-layers": len(model.layers),
        "hidden-size": model.hidden_size,
        "num-attention-heads": model.num_attention_heads,
        "num-query-groups": model.num_query_groups,
        "kv-channels": model.kv_channels,
        "ffn-hidden-size": model.ffn_hidden_size,
        "norm-epsilon": repr(model.norm_epsilon),
        "softmax-type": model.softmax,
        "position-embedding-type": model.position_embedding,
        "rotary-base": model.rotary_base,
        "grapem-log-freq-scale": repr(model.grapem_log_freq_scale),
        "padded-vocab-size": model.vocab_size,
        "seq-length": model.max_sequence_length,
        "max-position-embeddings": model.max_sequence_length,
        "normalization": "RMSNorm",
        "attention-dropout": 0,
        "hidden-dropout": 0,
        "micro-batch-size": 1,
        "tokenizer-type": "O200kHarmonyTokenizer",
    }
    switches = ["group-query-attention", "squared-relu", "disable-bias-linear"]
    switches += ["untie-embeddings-and-output-weights"]
    if model.qk_norm:
        switches.append("qk-layernorm")
    if model.grapem_per_head and model.position_embedding == "grapem":
        switches.append("grapem-per-head")
    windows = {layer.window for layer in model.layers} - {None}
    if len(windows) > 1:
        raise ExportError(
            f"architecture.layers: windows {sorted(map(str, windows))}; vpMoE has one"
        )
    for window in windows:
        flags["window-size"] = str(window)
        flags["window-attn-skip-freq"] = _list(model, lambda layer: layer.window is not None)
    if model.position_embedding != "none" and not all(layer.rotates for layer in model.layers):
        flags["no-rope-freq"] = _list(model, lambda layer: not layer.rotates)
    if any(layer.alibi for layer in model.layers):
        switches.append("grape-a")
        if any(layer.alibi and layer.rotates for layer in model.layers):
            switches.append("grape-a-with-rotation")
    if model.tpa is not None:
        switches.append("use-tpa")
        flags |= {"tpa-rank": model.tpa.rank, "tpa-q-rank": model.tpa.q_rank}
    if model.experts is not None:
        flags |= _expert_flags(model)
        if model.experts.bias:
            switches.append("moe-router-enable-expert-bias")
        if model.experts.pre_softmax:
            switches.append("moe-router-pre-softmax")
    words = [word for name, value in flags.items() for word in ("--" + name, str(value))]
    return words + ["--" + name for name in switches]


def _expert_flags(model: Architecture) -> dict[str, Any]:
    experts = model.experts
    assert experts is not None
    flags: dict[str, Any] = {
        "num-experts": experts.count,
        "moe-layer-freq": _list(model, lambda layer: layer.experts),
        "moe-ffn-hidden-size": experts.ffn_hidden_size,
        "moe-router-topk": experts.topk,
        "moe-router-score-function": experts.score_function,
        "moe-router-topk-scaling-factor": repr(experts.scaling_factor),
        "moe-router-dtype": "fp32",
    }
    if experts.shared_ffn_hidden_size:
        flags["moe-shared-expert-intermediate-size"] = experts.shared_ffn_hidden_size
    if experts.groups > 1:
        flags["moe-router-num-groups"] = experts.groups
        flags["moe-router-group-topk"] = experts.group_topk
        if experts.group_score_topk != experts.topk // experts.group_topk:
            flags["moe-router-group-score-topk"] = experts.group_score_topk
    return flags


def _list(model: Architecture, holds: Callable[[Layer], bool]) -> str:
    return "[" + ",".join(str(int(holds(layer))) for layer in model.layers) + "]"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
