"""Flags of the model, beside Megatron's, and what is refused.

The flags and their meaning are listed in `docs/model.md`.
"""

from __future__ import annotations

import argparse

from vpmoe.model.window import parse_window_size

ATTENTION_KERNELS = ("auto", "eager", "triton", "te")
EXPERT_KERNELS = ("auto", "sequential", "grouped", "fused")
LOSS_KERNELS = ("auto", "full", "chunked")


def add_model_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds vpMoE's model flags and lets Megatron's `--window-size` take one integer."""
    window = parser._option_string_actions["--window-size"]
    window.type = parse_window_size
    window.help = (
        "Sliding window of local layers. One integer W is the number of tokens seen, the current "
        "one included (128); `left,0` is Megatron's form, without the current one (127,0)."
    )
    group = parser.add_argument_group(title="vpMoE model")
    group.add_argument(
        "--grapem-log-freq-scale",
        type=float,
        default=16.0,
        help="s in phi = s ln(frequency), the learnable log-frequencies of GRAPE-M.",
    )
    group.add_argument(
        "--grapem-learnable-freq",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Learn the frequencies of GRAPE-M; frozen ones make it RoPE.",
    )
    group.add_argument(
        "--grapem-per-head",
        action="store_true",
        help="Frequencies of their own for every KV group, instead of one set for all heads.",
    )
    group.add_argument(
        "--grape-a",
        action="store_true",
        help="GRAPE-A on global layers: the ALiBi bias -m_h (i - j) on the attention logits.",
    )
    group.add_argument(
        "--grape-a-with-rotation",
        action="store_true",
        help="Permit global layers that rotate and have the GRAPE-A bias as well.",
    )
    group.add_argument(
        "--use-tpa", action="store_true", help="Tensor Product Attention on local layers."
    )
    group.add_argument("--tpa-rank", type=int, default=None, help="Rank of TPA's keys and values.")
    group.add_argument("--tpa-q-rank", type=int, default=None, help="Rank of TPA's queries.")
    group.add_argument(
        "--moe-router-group-score-topk",
        type=int,
        default=None,
        metavar="N",
        help="A group of experts scores the sum of its N best: 2 is DeepSeek-V3's rule. Without "
        "it Megatron's rule: N is --moe-router-topk // --moe-router-group-topk.",
    )
    group.add_argument(
        "--attention-kernel",
        choices=ATTENTION_KERNELS,
        default="auto",
        help="Attention backend: eager is the fp32 reference, triton the fused CUDA kernel, te "
        "Transformer Engine's; auto takes the fastest that can do the layer. With triton, and with "
        "auto outside deterministic mode, TPA's factors become rotated heads in one kernel.",
    )
    group.add_argument(
        "--expert-kernel",
        choices=EXPERT_KERNELS,
        default="auto",
        help="Routed experts one by one (sequential), in one grouped matrix product (grouped), or "
        "grouped with routing and permutation in fused kernels (fused); on a GPU auto is fused, "
        "and grouped in deterministic mode or where fused cannot.",
    )
    group.add_argument(
        "--loss-kernel",
        choices=LOSS_KERNELS,
        default="auto",
        help="Output layer and loss over all logits (full, Megatron's) or a chunk of tokens at a "
        "time (chunked); auto is chunked on a GPU, and full in deterministic mode.",
    )
    return parser


def validate_model_args(args: argparse.Namespace) -> None:
    """Checks the model's flags together, after Megatron has checked and expanded its own.

    Args:
        args: Megatron's and vpMoE's arguments; derived ones are set.

    Raises:
        ValueError: the combination and the flag that would mend it.
    """
    if args.use_tpa or args.tpa_rank is not None or args.tpa_q_rank is not None:
        _validate_tpa(args)
    _validate_graphs(args)
    _validate_positions(args)
    _validate_attention(args)
    _validate_routing(args)


def refuse_model_args(args: argparse.Namespace) -> None:
    """Refuses what the model cannot do, each with its own message; reads flags as they were given.

    Args:
        args: Megatron's and vpMoE's arguments, as they were given.

    Raises:
        ValueError: the flag, and what to do.
    """
    if args.context_parallel_size > 1:
        raise ValueError(
            f"--context-parallel-size {args.context_parallel_size}: vpMoE's windows, ALiBi "
            "distances and document resets need the whole sequence on a rank; use 1"
        )
    if args.multi_latent_attention:
        raise ValueError("--multi-latent-attention is not a vpMoE attention; leave it out")
    if getattr(args, "mtp_num_layers", None):
        raise ValueError("--mtp-num-layers: vpMoE has no multi-token prediction; leave it out")
    if args.normalization != "RMSNorm":
        raise ValueError(
            f"--normalization {args.normalization}: vpMoE has RMSNorm only; use --normalization "
            "RMSNorm"
        )
    if not args.untie_embeddings_and_output_weights:
        raise ValueError(
            "vpMoE does not tie embeddings; pass --untie-embeddings-and-output-weights"
        )
    if args.attention_dropout:
        raise ValueError(
            f"--attention-dropout {args.attention_dropout}: no attention kernel of vpMoE drops "
            "out; use 0"
        )
    if args.add_bias_linear and args.num_experts and args.moe_shared_expert_intermediate_size:
        raise ValueError(
            "--moe-shared-expert-intermediate-size: Megatron's shared experts have no bias, which "
            "every linear layer has unless --disable-bias-linear is passed; pass it"
        )
    if getattr(args, "use_grouped_gemm_for_shared_expert", False):
        raise ValueError(
            "--use-grouped-gemm-for-shared-expert: it is Transformer Engine's SwiGLU, and vpMoE's "
            "shared experts are Megatron's own layers; leave it out"
        )
    if args.rampup_batch_size is not None:
        raise ValueError(
            "--rampup-batch-size: Megatron no longer reads it, so the batch would not grow; use "
            '--step-batch-size-schedule, such as "0:256 2B:512" in tokens, without '
            "--global-batch-size"
        )
    if args.fp8 or getattr(args, "fp4", None):
        raise ValueError("--fp8-format, --fp4-format: vpMoE trains in fp32 or bf16; use --bf16")


def _validate_graphs(args: argparse.Namespace) -> None:
    if args.cuda_graph_impl not in ("none", "full_iteration"):
        raise ValueError(
            f"--cuda-graph-impl {args.cuda_graph_impl}: it graphs Megatron's layers, not vpMoE's; "
            "use none, or full_iteration: full_iteration graphs forward and backward as a whole"
        )
    if args.cuda_graph_impl == "none":
        return
    # A replay repeats what was captured, with what then stood on the host.
    if args.fp16:
        raise ValueError(
            "--cuda-graph-impl full_iteration: it would keep the loss scale of its capture; use "
            "--bf16"
        )
    if args.step_batch_size_schedule is not None:
        raise ValueError(
            "--cuda-graph-impl full_iteration: it would keep the number of micro-batches of its "
            "capture; leave out --step-batch-size-schedule"
        )


def _validate_positions(args: argparse.Namespace) -> None:
    kind = args.position_embedding_type
    if kind not in ("grapem", "rope", "none"):
        raise ValueError(
            f"--position-embedding-type {kind}: vpMoE has grapem, rope (Megatron's) and none; "
            "use one of them"
        )
    if kind == "grapem":
        if args.flash_decode:
            raise ValueError("GRAPE-M: --flash-decode is for inference; leave it out")
        if args.kv_channels % 2:
            raise ValueError(
                f"GRAPE-M rotates planes: --kv-channels {args.kv_channels} is odd; use an even "
                "number"
            )
        if args.grapem_log_freq_scale <= 0:
            raise ValueError(
                f"--grapem-log-freq-scale {args.grapem_log_freq_scale} must be positive"
            )
    elif args.grapem_per_head or not args.grapem_learnable_freq:
        raise ValueError("--grapem-*: needs --position-embedding-type grapem")
    if args.grapem_per_head:
        groups, tp = _query_groups(args), args.tensor_model_parallel_size
        if groups % tp:
            raise ValueError(
                f"--grapem-per-head: {groups} KV groups don't divide among {tp} tensor-parallel "
                f"ranks; use a tensor-parallel size that divides {groups}"
            )


def _validate_attention(args: argparse.Namespace) -> None:
    heads, groups, tp = (
        args.num_attention_heads,
        _query_groups(args),
        args.tensor_model_parallel_size,
    )
    if heads % groups:
        raise ValueError(
            f"--num-query-groups {groups} does not divide {heads} attention heads; use a number "
            f"that divides {heads}"
        )
    if groups % tp:
        raise ValueError(
            f"--num-query-groups {groups} does not divide among {tp} tensor-parallel ranks; use a "
            f"tensor-parallel size that divides {groups}"
        )
    if args.window_size is None and args.window_attn_skip_freq is not None:
        raise ValueError("--window-attn-skip-freq: needs --window-size")
    if args.grape_a:
        both = [n for n in global_layers(args) if rotates(args, n)]
        if both and not args.grape_a_with_rotation:
            raise ValueError(
                f"--grape-a does not switch the rotation off: layers {both} would both rotate and "
                "have the ALiBi bias; pass --no-rope-freq for them, or --grape-a-with-rotation if "
                "that is meant"
            )
    elif args.grape_a_with_rotation:
        raise ValueError("--grape-a-with-rotation: needs --grape-a")


def _validate_tpa(args: argparse.Namespace) -> None:
    if not args.use_tpa:
        raise ValueError("--tpa-rank, --tpa-q-rank: need --use-tpa")
    if args.window_size is None:
        raise ValueError("--use-tpa: TPA is on local layers; set --window-size")
    for name in ("tpa_rank", "tpa_q_rank"):
        rank = getattr(args, name)
        flag = "--" + name.replace("_", "-")
        if rank is None:
            raise ValueError(f"--use-tpa: {flag} is missing")
        if rank < 1:
            raise ValueError(f"{flag} {rank} must be positive")
    if args.add_bias_linear:
        raise ValueError(
            "--use-tpa: its factors have no bias, which every linear layer has unless "
            "--disable-bias-linear is passed"
        )
    if args.add_qkv_bias:
        raise ValueError(
            "--add-qkv-bias: the factors of --use-tpa have no bias; leave out one of the two"
        )
    groups, tp = _query_groups(args), args.tensor_model_parallel_size
    if groups < tp:
        raise ValueError(
            f"--use-tpa: num_query_groups {groups} must be at least the tensor-parallel size {tp}; "
            f"use a tensor-parallel size of at most {groups}"
        )


def _validate_routing(args: argparse.Namespace) -> None:
    score_topk = args.moe_router_group_score_topk
    if args.num_experts is None:
        if score_topk is not None:
            raise ValueError("--moe-router-group-score-topk: needs --num-experts")
        return
    if score_topk is not None:
        from vpmoe.model.moe.groups import group_score_unsupported_reason

        refusal = group_score_unsupported_reason(args)
        if refusal is not None:
            raise ValueError(f"--moe-router-group-score-topk: {refusal}")
    groups, group_topk = args.moe_router_num_groups, args.moe_router_group_topk
    if not groups or not group_topk:
        return
    size, topk = args.num_experts // groups, args.moe_router_topk
    if topk > group_topk * size:
        raise ValueError(
            f"--moe-router-topk {topk}: {group_topk} groups of {size} experts have only "
            f"{group_topk * size}; raise --moe-router-group-topk"
        )
    if score_topk is None and group_topk > topk:
        raise ValueError(
            f"--moe-router-group-topk {group_topk} exceeds --moe-router-topk {topk}: Megatron "
            f"scores a group by its best {topk} // {group_topk} = 0 experts, so that the groups "
            "would be arbitrary; lower it, or set --moe-router-group-score-topk"
        )
    if score_topk is not None and not 1 <= score_topk <= size:
        raise ValueError(
            f"--moe-router-group-score-topk {score_topk}: a group has {size} experts; use 1 to "
            f"{size}"
        )


def _query_groups(args: argparse.Namespace) -> int:
    return args.num_query_groups if args.group_query_attention else args.num_attention_heads


def global_layers(args: argparse.Namespace) -> list[int]:
    """The layers without a window, counted from 1."""
    return [n for n in range(1, args.num_layers + 1) if not _is_local(args, n)]


def _is_local(args: argparse.Namespace, layer_number: int) -> bool:
    from vpmoe.megatron.helpers import is_layer_window_attention

    return is_layer_window_attention(args.window_size, args.window_attn_skip_freq, layer_number)


def rotates(args: argparse.Namespace, layer_number: int) -> bool:
    """Whether a layer, counted from 1, rotates its queries and keys."""
    if args.position_embedding_type not in ("grapem", "rope"):
        return False
    skip = args.no_rope_freq
    if isinstance(skip, int):
        return layer_number % skip != 0
    return not (skip and skip[layer_number - 1])
