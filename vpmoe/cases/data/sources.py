"""Records of a run's sources of data: the flags that are refused, and what rank stops on damage."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases.data.refusing import record_refusal
from vpmoe.data import batch, dataset, samples
from vpmoe.data.arguments import add_data_args, validate_data_args
from vpmoe.data.build import build_dataset
from vpmoe.runtime.patches import replaced
from vpmoe.tokenizer.arguments import TOKENIZER_TYPE, add_tokenizer_args
from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer


@contextmanager
def one_rank() -> Iterator[None]:
    """Megatron's groups of one process, inside the lane."""
    from megatron.core import parallel_state

    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def record_flags(recorder: Recorder, built: Path, rows: Path, folder: Path) -> None:
    """Records what each combination of flags is taken for, or the message of its refusal.

    Args:
        recorder: of this process.
        built: a dataset with both splits.
        rows: rows to build others of.
        folder: an empty one.
    """
    for name, fraction in (("no_valid", "0"), ("no_train", "1")):
        build_dataset([rows], folder / name, valid_fraction=fraction)
    for name in ("a.idx", "a.bin", "b.idx", "b.bin", "c.idx"):
        (folder / name).touch()
    a, b, c = (str(folder / name) for name in "abc")
    (folder / "blend.txt").write_text(f"0.3 {a} 0.7 {b}")
    synth = {"synth_kd_data": str(built)}
    kinds: dict[str, dict[str, Any]] = {
        "nothing": {},
        "synth": synth,
        "no_valid": {"synth_kd_data": str(folder / "no_valid")},
        "no_valid_full": {"synth_kd_data": str(folder / "no_valid"), "full_validation": True},
        "no_train": {"synth_kd_data": str(folder / "no_train")},
        "no_dataset": {"synth_kd_data": str(folder / "missing")},
        "two_sources": synth | {"data_path": [a]},
        "mock_and_synth": synth | {"mock_data": True},
        "mock_and_plain": {"mock_data": True, "data_path": [a]},
        "negative": synth | {"kd_span_weight_final": -1.0},
        "not_a_number": synth | {"kd_span_weight_reasoning": float("nan")},
        "no_weight": synth | {"kd_span_weight_reasoning": 0.0, "kd_span_weight_final": 0.0},
        "one_weight": synth | {"kd_span_weight_reasoning": 0.0},
        "external": synth | {"dataloader_type": "external"},
        "hybrid": synth | {"hybrid_context_parallel": True},
        "several_valid": synth | {"multiple_validation_sets": True},
        "legacy_tokenizer": synth | {"legacy_tokenizer": True, "tokenizer_type": "NullTokenizer"},
        "mock": {"mock_data": True},
        "mock_weights": {"mock_data": True, "kd_span_weight_final": 2.0},
        "mock_sft": {"mock_data": True, "sft": True},
        "fim": {"data_path": [a], "fim_data": True},
        "plain": {"data_path": [a], "split": "90,10"},
        "plain_no_valid": {"data_path": [a], "split": "100,0,0"},
        "plain_no_valid_full": {"data_path": [a], "split": "1,0,0", "full_validation": True},
        "plain_no_train": {"data_path": [a], "split": "0,1,0"},
        "plain_no_split": {"data_path": [a]},
        "blend": {"data_path": ["0.3", a, "0.7", b], "split": "9,1"},
        "blend_file": {"data_args_path": str(folder / "blend.txt"), "split": "1,1"},
        "each": {"train_data_path": [a], "valid_data_path": [b]},
        "train_alone": {"train_data_path": [a]},
        "valid_alone": {"valid_data_path": [b]},
        "no_file": {"data_path": [str(folder / "none")], "split": "1,1"},
        "no_tokens": {"data_path": [c], "split": "1,1"},
        "with_ending": {"data_path": [f"{a}.bin"], "split": "1,1"},
        "object_store": {"data_path": ["s3://bucket/tokens"], "split": "1,1"},
    }
    for name, changes in kinds.items():
        args = _args(**changes)

        def check(args: argparse.Namespace = args) -> dict[str, Any]:
            validate_data_args(args)
            weights = [args.kd_span_weight_reasoning, args.kd_span_weight_final]
            return {"eval_iters": args.eval_iters, "weights": weights}

        record_refusal(recorder, f"flags/{name}", check, folder)


def record_provider(
    recorder: Recorder, tokenizer: O200kHarmonyTokenizer, built: Path, folder: Path
) -> None:
    """Records what Megatron's dataset provider gives, and that damage on any rank stops each.

    Args:
        recorder: of this process, in which Megatron's groups are initialized.
        tokenizer: of the dataset.
        built: a dataset with both splits.
        folder: an empty one.
    """
    damaged = folder / "dataset"
    shutil.copytree(built, damaged)
    path = damaged / "valid" / "shard_01_tokens.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")

    def provide(of: Path) -> list[Any]:
        args = SimpleNamespace(
            synth_kd_data=str(of),
            seed=3,
            seq_length=64,
            data_cache_path=None,
            dataloader_fast_cache_load=False,
            dataloader_defer_npy_index_mmap=False,
            reset_position_ids=True,
            reset_attention_mask=True,
        )
        with (
            replaced(dataset, "get_args", lambda: args),
            replaced(samples, "get_tokenizer", lambda: tokenizer),
        ):
            found = dataset.train_valid_test_datasets_provider([10, 4, 0])
        return [None if split is None else len(split) for split in found]

    def damage_elsewhere(found: torch.Tensor, op: Any) -> None:
        del op
        found.fill_(1)

    record_refusal(recorder, "provider/whole", lambda: provide(built), folder)
    record_refusal(recorder, "provider/damaged", lambda: provide(damaged), folder)
    with replaced(torch.distributed, "all_reduce", damage_elsewhere):
        record_refusal(recorder, "provider/damaged_elsewhere", lambda: provide(built), folder)
    record_refusal(
        recorder, "provider/no_iterator", lambda: type(batch.get_batch(None)).__name__, folder
    )


def _args(**changes: Any) -> argparse.Namespace:
    parser = add_tokenizer_args(add_data_args(argparse.ArgumentParser()))
    given = {
        "split": None,
        "data_path": None,
        "data_args_path": None,
        "train_data_path": None,
        "valid_data_path": None,
        "test_data_path": None,
        "per_split_data_args_path": None,
        "mock_data": False,
        "sft": False,
        "fim_data": False,
        "tokenizer_type": TOKENIZER_TYPE,
        "multiple_validation_sets": False,
        "dataloader_type": "single",
        "hybrid_context_parallel": False,
        "full_validation": False,
        "eval_iters": 10,
    }
    return argparse.Namespace(**(vars(parser.parse_args([])) | given | changes))
