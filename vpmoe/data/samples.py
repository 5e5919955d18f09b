"""What every source of data has in common: the settings of its samples, and who reads them."""

from __future__ import annotations

import argparse
from typing import Any

from megatron.core import parallel_state
from megatron.training import get_tokenizer


def sample_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Chooses the fields of Megatron's `GPTDatasetConfig` that do not depend on the source.

    Args:
        args: Megatron's and vpMoE's arguments, validated.

    Returns:
        Field -> value.
    """
    return {
        "random_seed": args.seed,
        "sequence_length": args.seq_length,
        "path_to_cache": args.data_cache_path,
        "fast_cache_load": args.dataloader_fast_cache_load,
        "defer_npy_index_mmap": args.dataloader_defer_npy_index_mmap,
        "tokenizer": get_tokenizer(),
        "reset_position_ids": args.reset_position_ids,
        "reset_attention_mask": args.reset_attention_mask,
        # Attention masks come from documents, in the kernels.
        "create_attention_mask": False,
    }


def reads_samples() -> bool:
    """Returns whether this rank reads samples.

    On every pipeline stage the first of the tensor-parallel ranks does, and sends its batches to
    the others.
    """
    return bool(parallel_state.get_tensor_model_parallel_rank() == 0)
