"""What the fields of a preset must be together, before anything is built of them."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from vpmoe.tokenizer.arguments import TOKENIZER_TYPE
from vpmoe.tokenizer.special import PADDED_VOCAB_SIZE

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
# Sizes and counts: neither Megatron nor vpMoE asks of all of them that there is something.
_POSITIVE = (
    *_REQUIRED[:-1],
    "rotary_base",
    "tpa_rank",
    "tpa_q_rank",
    "no_rope_freq",
    "window_attn_skip_freq",
    "num_experts",
    "moe_layer_freq",
    "moe_ffn_hidden_size",
    "moe_shared_expert_intermediate_size",
    "moe_router_topk",
    "moe_router_num_groups",
    "moe_router_group_topk",
    "moe_router_group_score_topk",
    "lr_decay_iters",
    "micro_batch_size",
    "global_batch_size",
    "train_iters",
    "eval_interval",
    "log_interval",
    "save_interval",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "context_parallel_size",
)


class FieldError(ValueError):
    """A field that contradicts another one.

    Args:
        field: the attribute.
        message: what is wrong with it.

    Attributes:
        field: its name.
    """

    field: str

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def check_together(args: argparse.Namespace, given: Collection[str]) -> None:
    """Checks the fields of a preset together.

    Args:
        args: what Megatron's parser made of the fields; defaults for those that are not given.
        given: names of the fields of the preset.

    Raises:
        FieldError: a field is missing, out of range, or contradicts another one.
    """
    for field in _REQUIRED:
        if field not in given:
            raise FieldError(field, "missing; every preset has it")
    for field in _POSITIVE:
        value = getattr(args, field)
        if field in given and isinstance(value, int) and value < 1:
            raise FieldError(field, f"must be positive, found {value}")
    if args.padded_vocab_size != PADDED_VOCAB_SIZE:
        raise FieldError(
            "padded_vocab_size", f"must be {PADDED_VOCAB_SIZE}, found {args.padded_vocab_size}"
        )
    if args.tokenizer_type != TOKENIZER_TYPE:
        raise FieldError(
            "tokenizer_type", f"must be {TOKENIZER_TYPE}, found {args.tokenizer_type!r}"
        )
    _divides(args, "num_query_groups", "num_attention_heads")
    if args.kv_channels % 2:
        raise FieldError("kv_channels", f"must be even to rotate, found {args.kv_channels}")
    if args.num_query_groups < args.num_attention_heads and not args.group_query_attention:
        raise FieldError("group_query_attention", "must be true with fewer groups than heads")
    if args.seq_length > args.max_position_embeddings:
        raise FieldError(
            "seq_length",
            f"must be at most max_position_embeddings {args.max_position_embeddings}, found "
            f"{args.seq_length}",
        )
    _check_attention(args)
    if args.num_experts is not None:
        _check_experts(args)
    if None not in (args.lr, args.min_lr) and args.lr < args.min_lr:
        raise FieldError("min_lr", f"must be at most lr {args.lr}, found {args.min_lr}")
    if None not in (args.micro_batch_size, args.global_batch_size):
        _divides(args, "micro_batch_size", "global_batch_size")


def _check_attention(args: argparse.Namespace) -> None:
    window = None if args.window_size is None else args.window_size[0] + 1
    if window is not None and window >= args.seq_length:
        raise FieldError(
            "window_size",
            f"{window} must be below seq_length {args.seq_length}; a window over the whole "
            "sequence is plain causal attention",
        )
    for field in ("window_attn_skip_freq", "no_rope_freq"):
        _check_schedule(args, field)
    if args.window_attn_skip_freq is not None and window is None:
        raise FieldError("window_attn_skip_freq", "needs window_size")
    if args.use_tpa:
        for field in ("window_size", "tpa_rank", "tpa_q_rank"):
            if getattr(args, field) is None:
                raise FieldError(field, "missing; use_tpa needs it")
        if args.add_bias_linear:
            raise FieldError(
                "disable_bias_linear", "must be true, the factors of use_tpa have none"
            )
    for field in ("tpa_rank", "tpa_q_rank"):
        if getattr(args, field) is not None and not args.use_tpa:
            raise FieldError(field, "set without use_tpa = true")
    rotates = args.position_embedding_type in ("rope", "grapem")
    if args.grape_a and rotates and not args.grape_a_with_rotation:
        skip, glob = args.no_rope_freq, args.window_attn_skip_freq
        if skip is None or skip != glob:
            raise FieldError(
                "no_rope_freq",
                "must equal window_attn_skip_freq when grape_a is on, or global layers rotate as "
                f"well (no_rope_freq {skip}, window_attn_skip_freq {glob})",
            )


def _check_experts(args: argparse.Namespace) -> None:
    if args.moe_shared_expert_intermediate_size is not None and args.add_bias_linear:
        raise FieldError("disable_bias_linear", "must be true, shared experts have no bias")
    groups, group_topk = args.moe_router_num_groups, args.moe_router_group_topk
    if (groups is None) != (group_topk is None):
        field = "moe_router_num_groups" if group_topk is None else "moe_router_group_topk"
        raise FieldError(field, "set moe_router_num_groups and moe_router_group_topk, or neither")
    topk, score_topk = args.moe_router_topk, args.moe_router_group_score_topk
    if groups is not None and group_topk is not None:
        _divides(args, "moe_router_num_groups", "num_experts")
        size = args.num_experts // groups
        if group_topk > groups:
            raise FieldError(
                "moe_router_group_topk",
                f"must be at most moe_router_num_groups {groups}, found {group_topk}",
            )
        if topk > group_topk * size:
            raise FieldError(
                "moe_router_topk",
                f"must be at most {group_topk * size}, the experts in {group_topk} of {groups} "
                f"groups, found {topk}",
            )
        if score_topk is None and group_topk > topk:
            raise FieldError(
                "moe_router_group_topk",
                f"{group_topk} exceeds moe_router_topk {topk}, which leaves no expert to score a "
                "group by; set moe_router_group_score_topk",
            )
        if score_topk is not None and score_topk > size:
            raise FieldError(
                "moe_router_group_score_topk",
                f"must be at most {size}, the experts of a group, found {score_topk}",
            )
    elif score_topk is not None:
        raise FieldError("moe_router_group_score_topk", "set without groups")
    if topk > args.num_experts:
        raise FieldError(
            "moe_router_topk", f"must be at most num_experts {args.num_experts}, found {topk}"
        )
    _check_schedule(args, "moe_layer_freq")


def _check_schedule(args: argparse.Namespace, field: str) -> None:
    """Checks a schedule of layers: every n-th, or a list that says 0 or 1 of each layer."""
    schedule = getattr(args, field)
    if schedule is None:
        return
    if isinstance(schedule, int):
        if schedule > args.num_layers:
            raise FieldError(
                field, f"must be at most num_layers {args.num_layers}, found {schedule}"
            )
        return
    if not isinstance(schedule, list) or any(layer not in (0, 1) for layer in schedule):
        raise FieldError(
            field, f"expected a list of zeros and ones such as ([0]+[1]*79), found {schedule!r}"
        )
    if len(schedule) != args.num_layers:
        raise FieldError(
            field,
            f"must list num_layers {args.num_layers} layers, found {len(schedule)}",
        )


def _divides(args: argparse.Namespace, divisor: str, number: str) -> None:
    if getattr(args, number) % getattr(args, divisor):
        raise FieldError(
            divisor,
            f"must divide {number} {getattr(args, number)}, found {getattr(args, divisor)}",
        )
