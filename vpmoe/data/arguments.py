"""Flags of the training data, beside Megatron's `--reset-position-ids` and the like."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from vpmoe.data.dataset_files import read_manifest


def add_data_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds vpMoE's data flags to Megatron's parser."""
    group = parser.add_argument_group(title="vpMoE data")
    group.add_argument(
        "--synth-kd-data",
        metavar="DIR",
        help="dataset to train on, as `vpmoe data build` writes it; --reset-position-ids and "
        "--reset-attention-mask restart positions and attention at every conversation",
    )
    group.add_argument(
        "--kd-span-weight-reasoning",
        type=float,
        default=1.0,
        metavar="W",
        help="weight of the mean loss over the reasoning (analysis) tokens of the global batch: "
        "the loss is W_r mean(reasoning) + W_f mean(final) (1)",
    )
    group.add_argument(
        "--kd-span-weight-final",
        type=float,
        default=1.0,
        metavar="W",
        help="weight of the mean loss over the final-answer tokens of the global batch (1)",
    )
    return parser


def validate_data_args(args: argparse.Namespace) -> None:
    """Checks the data flags, and that the dataset is one; without valid documents there is no
    evaluation.

    Raises:
        ValueError: no dataset, a damaged manifest, another source of data beside it, weights that
            are no weights, or batches that are not Megatron's samplers'.
    """
    if args.synth_kd_data is None:
        raise ValueError("--synth-kd-data DIR is required: build one with `vpmoe data build`")
    others = [
        "--" + name.replace("_", "-")
        for name in ("data_path", "train_data_path", "valid_data_path", "test_data_path")
        if getattr(args, name, None)
    ]
    others += ["--mock-data"] if getattr(args, "mock_data", False) else []
    if others:
        raise ValueError(f"--synth-kd-data is the only source of data; leave out {others[0]}")
    weights = (args.kd_span_weight_reasoning, args.kd_span_weight_final)
    for name, weight in zip(("reasoning", "final"), weights, strict=True):
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"--kd-span-weight-{name} {weight}: must be a number >= 0")
    if weights == (0, 0):
        raise ValueError("--kd-span-weight-reasoning and -final are both 0: nothing to train on")
    if args.dataloader_type == "external" or args.hybrid_context_parallel:
        raise ValueError(
            "--dataloader-type external and --hybrid-context-parallel bring batches of their own; "
            "--synth-kd-data is read through Megatron's samplers"
        )
    manifest = read_manifest(Path(args.synth_kd_data))
    if not manifest["splits"]["train"]["rows"]:
        raise ValueError(
            f"{args.synth_kd_data}: no train documents; build with a smaller --valid-fraction"
        )
    if not manifest["splits"]["valid"]["rows"]:
        if args.full_validation:
            raise ValueError(
                f"--full-validation: {args.synth_kd_data} has no valid documents; build with "
                "--valid-fraction"
            )
        args.eval_iters = 0  # nothing to evaluate on
