"""Finds settings that read as a restriction and cannot change a result.

They are no errors, since a run without them would be the same; `vpmoe pretrain` names them once.
"""

from __future__ import annotations

import argparse

from vpmoe.model.arguments import global_layers, rotates
from vpmoe.model.moe.groups import experts_that_score


def limits_without_effect(args: argparse.Namespace) -> list[str]:
    """Finds what of the configuration cannot bind.

    Args:
        args: Megatron's and vpMoE's arguments, validated.

    Returns:
        A sentence each, which names the flags; empty where all binds.
    """
    found = _attention(args)
    if args.num_experts is not None and _has_moe_layer(args):
        found += _groups(args) + _experts(args)
    return found


def _groups(args: argparse.Namespace) -> list[str]:
    groups, group_topk = args.moe_router_num_groups, args.moe_router_group_topk
    if not groups:
        return []
    if not group_topk:
        return [
            f"--moe-router-num-groups {groups} without --moe-router-group-topk: experts are chosen "
            "without groups"
        ]
    topk = args.moe_router_topk
    if group_topk == groups:
        return [
            f"--moe-router-group-topk {group_topk} of {groups} groups: no group is ever closed to "
            "a token"
        ]
    if "sinkhorn" in args.moe_router_load_balancing_type:
        return [
            "--moe-router-num-groups: --moe-router-load-balancing-type sinkhorn chooses without "
            "groups"
        ]
    scoring = experts_that_score(topk, group_topk, args.moe_router_group_score_topk)
    # A group that holds one of the best topk experts has a best expert among them, and at most
    # topk groups do.
    if scoring == 1 and group_topk >= topk:
        return [
            f"--moe-router-group-topk {group_topk}: a group is scored by its best expert alone, so "
            f"a token's best {topk} experts always lie in its best {group_topk} groups and the "
            "limit changes no choice; --moe-router-group-score-topk 2 is DeepSeek-V3's rule, "
            f"--moe-router-group-topk below {topk} limits under this one"
        ]
    return []


def _experts(args: argparse.Namespace) -> list[str]:
    found = []
    experts, topk, factor = args.num_experts, args.moe_router_topk, args.moe_expert_capacity_factor
    if topk == experts:
        found.append(f"--moe-router-topk {topk}: every token goes to all {experts} experts")
    # At most every token of a micro-batch chooses an expert, whose room is factor * topk / experts
    # of them. A negative factor is Megatron's for none.
    if factor is not None and factor * topk >= experts:
        found.append(
            f"--moe-expert-capacity-factor {factor:g}: an expert has room for all tokens from "
            f"{experts} experts / {topk} a token = {experts / topk:g} on, so none is ever dropped"
        )
    return found


def _attention(args: argparse.Namespace) -> list[str]:
    found = []
    without_window = global_layers(args)
    if args.window_size is not None:
        window = args.window_size[0] + 1
        if len(without_window) == args.num_layers:
            tpa = " and --use-tpa" if args.use_tpa else ""
            found.append(
                f"--window-size {window}{tpa}: --window-attn-skip-freq "
                f"{args.window_attn_skip_freq} leaves no local layer"
            )
        elif window >= args.seq_length:
            found.append(
                f"--window-size {window}: it covers the sequence of {args.seq_length} tokens, so "
                "local layers see what global ones see"
            )
    if args.grape_a and not without_window:
        found.append("--grape-a: every layer is local, and the bias is for global layers")
    kind = args.position_embedding_type
    if args.no_rope_freq and (
        kind == "none" or all(rotates(args, n) for n in range(1, args.num_layers + 1))
    ):
        why = "no layer rotates" if kind == "none" else f"all {args.num_layers} layers rotate"
        found.append(f"--no-rope-freq: it excludes no layer from the rotation; {why}")
    return found


def _has_moe_layer(args: argparse.Namespace) -> bool:
    schedule = args.moe_layer_freq
    return isinstance(schedule, int) or any(schedule)
