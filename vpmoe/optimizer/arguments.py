"""Flags of NorMuon, beside Megatron's, and what is refused with it."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from vpmoe.optimizer.polar_express import DEFAULT_SAFETY_FACTOR, load_coefficients

TP_MODES = ("duplicated", "distributed", "blockwise")

# Attribute -> flag: each takes the weights or the state away from the step on whole matrices.
_REFUSED = {
    "use_distributed_optimizer": "--use-distributed-optimizer",
    "overlap_param_gather": "--overlap-param-gather",
    "overlap_param_gather_with_optimizer_step": "--overlap-param-gather-with-optimizer-step",
    "optimizer_cpu_offload": "--optimizer-cpu-offload",
    "use_precision_aware_optimizer": "--use-precision-aware-optimizer",
    "use_torch_fsdp2": "--use-torch-fsdp2",
    "use_megatron_fsdp": "--use-megatron-fsdp",
    "fp16": "--fp16",
    "use_mup": "--use-mup",
}
# Megatron has them for its precision-aware optimizer alone.
_DTYPES = ("main_grads_dtype", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")


def add_optimizer_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the flags of `--optimizer normuon`."""
    group = parser.add_argument_group(title="vpMoE optimizer")
    group.add_argument(
        "--normuon-aux-lr",
        type=float,
        default=None,
        help="Learning rate of the parameters that AdamW takes; --lr when left out. --decoupled-lr "
        "overrides it for embeddings and output.",
    )
    group.add_argument(
        "--normuon-aux-min-lr",
        type=float,
        default=None,
        help="Minimum learning rate of the parameters that AdamW takes; --min-lr when left out.",
    )
    group.add_argument(
        "--normuon-momentum", type=float, default=0.95, help="mu, decay of the momentum."
    )
    group.add_argument(
        "--normuon-beta2", type=float, default=0.95, help="Decay of the rows' second moment."
    )
    group.add_argument(
        "--normuon-tp-mode",
        choices=TP_MODES,
        default="duplicated",
        help="How tensor-parallel weights are orthogonalised. duplicated: gathered, every rank "
        "computes the whole matrix; distributed: shards stay, Gram matrices are summed; blockwise: "
        "every shard for itself, which is another update.",
    )
    group.add_argument(
        "--polar-express-safety-factor",
        type=float,
        default=DEFAULT_SAFETY_FACTOR,
        help="sf: Polar Express' coefficients leave room for singular values up to 1 + sf.",
    )
    group.add_argument(
        "--polar-express-coeffs-path",
        type=Path,
        default=None,
        metavar="JSON",
        help="A list of triples [a, b, c] in place of the computed coefficients; its length is the "
        "number of iterations.",
    )
    return parser


def refuse_optimizer_args(args: argparse.Namespace) -> None:
    """Refuses what NorMuon's step excludes; reads flags as they were given.

    Args:
        args: Megatron's and vpMoE's arguments, as they were given.

    Raises:
        ValueError: the flag, and what to do.
    """
    if args.optimizer != "normuon":
        return
    for name, flag in _REFUSED.items():
        if getattr(args, name):
            raise ValueError(f"--optimizer normuon does not support {flag}; leave it out")
    for name in _DTYPES:
        if getattr(args, name) != "fp32":
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"--optimizer normuon keeps gradients, weights and state in fp32: {flag} "
                f"{getattr(args, name)}; leave it out"
            )


def validate_optimizer_args(args: argparse.Namespace) -> None:
    """Checks NorMuon's flags, after Megatron has checked its own.

    Args:
        args: Megatron's and vpMoE's arguments.

    Raises:
        ValueError: a flag out of range, two that exclude each other, or an unusable JSON file.
    """
    if args.optimizer != "normuon":
        for name in ("normuon_aux_lr", "normuon_aux_min_lr", "polar_express_coeffs_path"):
            if getattr(args, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise ValueError(f"{flag} needs --optimizer normuon, not {args.optimizer}")
        return
    if args.optimizer_cuda_graph:
        if not torch.cuda.is_available():
            raise ValueError("--optimizer-cuda-graph: there is no CUDA device; leave it out")
        if args.tensor_model_parallel_size > 1:
            raise ValueError(
                f"--optimizer-cuda-graph with --tensor-model-parallel-size "
                f"{args.tensor_model_parallel_size}: NorMuon communicates in its step; use one of "
                "the two"
            )
    for name in ("normuon_momentum", "normuon_beta2"):
        if not 0.0 <= getattr(args, name) < 1.0:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} must be in [0, 1), found {getattr(args, name)}")
    if not 0.0 <= args.polar_express_safety_factor < 1.0:
        raise ValueError(
            "--polar-express-safety-factor must be in [0, 1), found "
            f"{args.polar_express_safety_factor}"
        )
    _validate_rates(args)
    if args.polar_express_coeffs_path is not None:
        load_coefficients(args.polar_express_coeffs_path)


def _validate_rates(args: argparse.Namespace) -> None:
    """Checks the learning rates of AdamW's parameters; those of --lr itself Megatron checks."""
    high, low = args.lr, args.min_lr
    for kind, prefix in (
        ("parameters of AdamW", "normuon_aux"),
        ("embedding and output", "decoupled"),
    ):
        own, own_low = getattr(args, f"{prefix}_lr"), getattr(args, f"{prefix}_min_lr")
        high, low = (high if own is None else own), (low if own_low is None else own_low)
        if high is not None and not 0.0 <= (low or 0.0) <= high:
            flag = "--" + prefix.replace("_", "-")
            raise ValueError(
                f"{flag}-min-lr: the {kind} would have a minimum learning rate of {low} and a "
                f"maximum of {high}; set {flag}-min-lr to at most {high}, or {flag}-lr to at least "
                f"{low}"
            )
