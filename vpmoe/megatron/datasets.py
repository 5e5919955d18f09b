"""Megatron's data sets as vpMoE reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vpmoe.megatron.contract import Contract, MakesTuple, Reads, Takes

_GPT = "megatron.core.datasets.gpt_dataset:GPTDataset"

SAMPLE_INDICES = Contract(
    "indices of samples",
    "vpMoE's data set finds a sample's documents in the document, sample and shuffle indices of "
    "Megatron's `GPTDataset`, mapped late where a flag says so.",
    "Compare `GPTDataset._query_document_sample_shuffle_indices` of this version with "
    "`pieces_of_sample`.",
    (
        MakesTuple(
            f"{_GPT}._build_document_sample_shuffle_indices",
            ("document_index", "sample_index", "shuffle_index"),
        ),
        Takes(f"{_GPT}._query_document_sample_shuffle_indices", ("idx",)),
        Reads(
            f"{_GPT}._query_document_sample_shuffle_indices",
            names=("shuffle_index", "sample_index", "document_index", "dataset", "get"),
        ),
        Reads(
            f"{_GPT}._build_document_sample_shuffle_indices",
            names=("sequence_lengths", "path_prefix"),
        ),
        Takes(
            f"{_GPT}.__init__",
            (
                "indexed_dataset",
                "dataset_path",
                "indexed_indices",
                "num_samples",
                "index_split",
                "config",
            ),
        ),
    ),
)

PROVIDER = Contract(
    "data on all ranks",
    "vpMoE's providers are called on every rank: each pipeline stage needs positions and "
    "documents. Megatron asks the provider's attribute `is_distributed`.",
    "See how `training.py` of this version decides which ranks build data sets.",
    (
        Reads(
            "megatron.training.training:build_train_valid_test_data_loaders",
            names=("is_distributed",),
        ),
        Takes(
            "megatron.core.datasets.blended_megatron_dataset_builder"
            ":BlendedMegatronDatasetBuilder.build_generic_dataset",
            ("cls", "is_built_on_rank", "synchronize_ranks"),
        ),
    ),
)

BLENDS = Contract(
    "flags of token files",
    "vpMoE checks `--data-path` and its kin before a training starts, as Megatron reads them.",
    "See how `pretrain_gpt.py` of this version reads the flags of its data.",
    (
        Takes("megatron.training.utils:get_blend_and_blend_per_split", ("args",)),
        Takes(
            "megatron.core.datasets.blended_megatron_dataset_config:parse_and_normalize_split",
            ("split",),
        ),
    ),
)

TOKEN_FILES = Contract(
    "token files",
    "vpMoE's cases write data in Megatron's own format with its `IndexedDatasetBuilder`.",
    "See how `indexed_dataset.py` of this version writes documents.",
    (
        Takes(
            "megatron.core.datasets.indexed_dataset:IndexedDatasetBuilder", ("bin_path", "dtype")
        ),
        Takes(
            "megatron.core.datasets.indexed_dataset:IndexedDatasetBuilder.add_document",
            ("tensor", "lengths"),
        ),
        Takes(
            "megatron.core.datasets.indexed_dataset:IndexedDatasetBuilder.finalize",
            ("idx_path",),
        ),
    ),
)

CONTRACTS = (SAMPLE_INDICES, PROVIDER, BLENDS, TOKEN_FILES)

get_blend_and_blend_per_split = BLENDS.take("get_blend_and_blend_per_split")
parse_and_normalize_split = BLENDS.take("parse_and_normalize_split")


def on_all_ranks[Provider: Callable[..., Any]](provider: Provider) -> Provider:
    """Has Megatron call a dataset provider on every rank."""
    PROVIDER.check()
    provider.is_distributed = True  # type: ignore[attr-defined]
    return provider


def pieces_of_sample(dataset: Any, index: int) -> Iterator[tuple[int, int, int]]:
    """Where the `sequence_length + 1` tokens of a sample come from, in order.

    Args:
        dataset: a `GPTDataset`.
        index: of the sample.

    Yields:
        (document, first token in it, number of tokens).
    """
    if dataset.shuffle_index is None:  # --dataloader-defer-npy-index-mmap: Megatron maps it now
        dataset._query_document_sample_shuffle_indices(index)
    position = dataset.shuffle_index[index]
    first, offset = (int(n) for n in dataset.sample_index[position])
    last, last_offset = (int(n) for n in dataset.sample_index[position + 1])
    for slot in range(first, last + 1):
        document = int(dataset.document_index[slot])
        start = offset if slot == first else 0
        end = last_offset + 1 if slot == last else int(dataset.dataset.sequence_lengths[document])
        yield document, start, end - start
