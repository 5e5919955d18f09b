"""Flags of the training data, beside Megatron's such as `--data-path` and `--mock-data`."""

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


# Megatron's flags of token files without masks; a run has one of these, or `--mock-data`.
_PLAIN = (
    "data_path",
    "data_args_path",
    "train_data_path",
    "valid_data_path",
    "test_data_path",
    "per_split_data_args_path",
)


def plain_sources() -> tuple[str, ...]:
    """The flags of data without spans."""
    return tuple("--" + name.replace("_", "-") for name in (*_PLAIN, "mock_data"))


def validate_data_args(args: argparse.Namespace) -> None:
    """Checks the data flags, and that there is a dataset.

    Without valid documents there is no evaluation.

    Args:
        args: Megatron's and vpMoE's arguments; evaluation is turned off in them where it cannot be.

    Raises:
        ValueError: no data, several sources of it, a damaged manifest, missing files, weights that
            are no weights or of spans that the data has not, or batches that are not Megatron's
            samplers'.
    """
    plain = [name for name in (*_PLAIN, "mock_data") if getattr(args, name)]
    flags = ["--" + name.replace("_", "-") for name in plain]
    if args.synth_kd_data is None and not plain:
        raise ValueError(
            "no data: --synth-kd-data DIR trains on what `vpmoe data build` wrote, --data-path on "
            "Megatron's token files, --mock-data on made-up tokens"
        )
    if args.synth_kd_data is not None and plain:
        raise ValueError(f"--synth-kd-data and {flags[0]}: a run has one source; leave one out")
    if args.mock_data and len(plain) > 1:
        raise ValueError(f"--mock-data and {flags[0]}: a run has one source; leave one out")
    weights = (args.kd_span_weight_reasoning, args.kd_span_weight_final)
    for name, weight in zip(("reasoning", "final"), weights, strict=True):
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"--kd-span-weight-{name} {weight}: must be a number >= 0")
    if weights == (0, 0):
        raise ValueError("--kd-span-weight-reasoning and -final are both 0: nothing to train on")
    if args.dataloader_type == "external" or args.hybrid_context_parallel:
        raise ValueError(
            "--dataloader-type external and --hybrid-context-parallel bring batches of their own; "
            "vpMoE's data is read through Megatron's samplers; leave them out"
        )
    if args.multiple_validation_sets:
        raise ValueError("--multiple-validation-sets: vpMoE evaluates on one set; leave it out")
    if args.synth_kd_data is None:
        _validate_plain(args, flags[0], weights)
    else:
        _validate_synth(args)


def _validate_plain(args: argparse.Namespace, source: str, weights: tuple[float, float]) -> None:
    if weights != (1, 1):
        raise ValueError(
            f"--kd-span-weight-reasoning, --kd-span-weight-final: {source} has no spans to weigh; "
            "leave them out"
        )
    for flag in ("sft", "fim_data"):
        if getattr(args, flag):
            name = flag.replace("_", "-")
            raise ValueError(f"--{name}: vpMoE has no such samples; leave it out")
    if args.mock_data:
        return
    from vpmoe.megatron.datasets import get_blend_and_blend_per_split, parse_and_normalize_split

    blend, per_split = get_blend_and_blend_per_split(args)
    for prefixes, _ in filter(None, (blend, *(per_split or ()))):
        for prefix in prefixes:
            _check_files(prefix, source)
    if per_split:
        trains, evaluates = per_split[0], per_split[1]
    elif args.split:
        trains, evaluates, _ = parse_and_normalize_split(args.split)
    else:
        raise ValueError(f"{source}: needs --split, such as 969,30,1")
    if not trains:
        raise ValueError(f"{source}: leaves nothing to train on; see --train-data-path, --split")
    if not evaluates:
        if args.full_validation:
            raise ValueError(
                f"--full-validation: {source} leaves nothing to evaluate on; leave it out"
            )
        # Megatron would evaluate all the same, and find no batches.
        args.eval_iters = 0


def _check_files(prefix: str, source: str) -> None:
    """A token file is there in both its parts, unless it is in an object store."""
    if "://" in prefix:
        return
    for ending in (".idx", ".bin"):
        if not Path(prefix + ending).is_file():
            suffix = Path(prefix).suffix
            remedy = (
                f"give the path without {suffix}"
                if suffix in (".idx", ".bin")
                else "give another path"
            )
            raise ValueError(f"{source} {prefix}: there is no file {prefix}{ending}; {remedy}")


def _validate_synth(args: argparse.Namespace) -> None:
    if args.legacy_tokenizer:
        raise ValueError(
            f"--legacy-tokenizer: {args.synth_kd_data} holds o200k Harmony ids, which would "
            f"silently mean other text to {args.tokenizer_type}; leave it out"
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
