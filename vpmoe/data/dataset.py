"""Samples for training: documents of a shuffled epoch, concatenated and cut, Megatron's way.

The order of documents and samples is computed by Megatron's own GPTDataset (document, sample and
shuffle index); here each sample also gets its loss mask, its spans and its document boundaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.utils import Split
from megatron.training import get_args, print_rank_0

from vpmoe.data.dataset_files import read_manifest
from vpmoe.data.documents import DocumentStore, verify_files
from vpmoe.data.errors import DataError
from vpmoe.data.samples import reads_samples, sample_settings
from vpmoe.megatron.datasets import on_all_ranks, pieces_of_sample

_SPLITS = {"train": Split.train, "valid": Split.valid}


@dataclass(frozen=True)
class Piece:
    """A run of tokens of one document in a sample."""

    document: int
    offset: int
    length: int


class SynthKDDataset(GPTDataset):
    """Packed samples of one split.

    Args:
        documents: the split's documents.
        num_samples: how many samples are wanted; epochs repeat until there are as many. None takes
            one epoch.
        config: Megatron's; `sequence_length`, `random_seed`, `reset_position_ids`,
            `reset_attention_mask` and `path_to_cache` are read.
    """

    def __init__(
        self, documents: DocumentStore, num_samples: int | None, config: GPTDatasetConfig
    ) -> None:
        super().__init__(
            documents,
            documents.digest,  # names Megatron's cache of indices
            np.arange(len(documents), dtype=np.int32),
            num_samples,
            _SPLITS[documents.split],
            config,
        )

    def pieces(self, index: int) -> list[Piece]:
        """Where the `sequence_length + 1` tokens of a sample come from, in order."""
        return [Piece(*piece) for piece in pieces_of_sample(self, index)]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Reads one sample of s tokens.

        Args:
            index: of the sample.

        Returns:
            `tokens` and `labels` int64 [s]; `loss_mask` float32 [s] and `span_id` int64 [s]
            (0 none, 1 reasoning, 2 final), both of the label; `position_ids` int64 [s], restarting
            at documents under `reset_position_ids`; `sample_id` int64 [], the index; and under
            `reset_attention_mask` `document_ids` int32 [s], which count the sample's documents
            from 0.

        Raises:
            CorruptDatasetError: a document is not what was built.
        """
        pieces = self.pieces(index)
        read = [self.dataset.read(p.document, p.offset, p.length) for p in pieces]
        text, mask, span = (
            np.concatenate([part[name] for part in read]).astype(np.int64)
            for name in ("tokens", "lossmask", "span")
        )
        lengths = [piece.length for piece in pieces]
        sample = {
            "tokens": torch.from_numpy(text[:-1].copy()),
            "labels": torch.from_numpy(text[1:].copy()),
            "loss_mask": torch.from_numpy(mask[:-1].astype(np.float32)),
            "span_id": torch.from_numpy(span[:-1].copy()),
            "position_ids": torch.from_numpy(self._positions(lengths)),
            "sample_id": torch.tensor(index),
        }
        if self.config.reset_attention_mask:
            documents = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[:-1]
            sample["document_ids"] = torch.from_numpy(documents)
        return sample

    def _positions(self, lengths: Sequence[int]) -> np.ndarray:
        positions = np.arange(sum(lengths) - 1, dtype=np.int64)
        if self.config.reset_position_ids:
            starts = np.cumsum([0, *lengths[:-1]])
            positions -= np.repeat(starts, lengths)[:-1]
        return positions


@on_all_ranks
def train_valid_test_datasets_provider(
    train_val_test_num_samples: Sequence[int | None], vp_stage: int | None = None
) -> tuple[SynthKDDataset | None, SynthKDDataset | None, None]:
    """Megatron's dataset provider over `--synth-kd-data`.

    Every pipeline stage gets samples, since all of them need positions and documents; of the
    tensor-parallel ranks only the first does, and sends its batches to the others.

    Args:
        train_val_test_num_samples: samples wanted of each split; None is one epoch.
        vp_stage: Megatron's virtual pipeline stage; all get the same samples.

    Returns:
        The train and valid datasets and None for test; None where the dataset has no such
        documents, and on ranks that read none.

    Raises:
        DataError: a damaged dataset: on all ranks, whichever found the damage.
    """
    del vp_stage
    args = get_args()
    folder = Path(args.synth_kd_data)
    config = GPTDatasetConfig(**sample_settings(args), eod_mask_loss=False)
    print_rank_0(f"> building SYNTH train and valid datasets from {folder} ...")
    _verify_together(folder)
    rows = {split: facts["rows"] for split, facts in read_manifest(folder)["splits"].items()}
    train, valid = (
        _build(folder, split, count, config) if rows[split] else None
        for split, count in zip(("train", "valid"), train_val_test_num_samples, strict=False)
    )
    return train, valid, None


def _build(
    folder: Path, split: str, num_samples: int | None, config: GPTDatasetConfig
) -> SynthKDDataset | None:
    def build() -> SynthKDDataset:
        return SynthKDDataset(DocumentStore(folder, split), num_samples, config)

    # Rank 0 first, so that the others find the cache of indices, if one was asked for.
    dataset: SynthKDDataset | None = BlendedMegatronDatasetBuilder.build_generic_dataset(
        build, reads_samples, True
    )
    return dataset


def _verify_together(folder: Path) -> None:
    """Verifies the dataset, a share on every rank; a rank that stopped alone would hang the rest.

    Raises:
        DataError: this rank's share is damaged, or another's.
    """
    damage = None
    try:
        verify_files(folder, torch.distributed.get_rank(), torch.distributed.get_world_size())
    except DataError as error:
        damage = error
    found = torch.tensor([damage is not None], dtype=torch.int32, device="cuda")
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    if damage is not None:
        raise damage
    if found.item():
        raise DataError(f"{folder}: damaged; see the message of another rank, which names the file")
