"""Data without masks and spans: Megatron's token files (`--data-path`) and its mock data.

The samples are those of `vpmoe.data.dataset`, so that batches, loss and model are the same. Every
token is trained on, and a document ends with EOD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from megatron.training import get_args

from vpmoe.data.errors import CorruptDatasetError, DataError
from vpmoe.data.samples import reads_samples, sample_settings
from vpmoe.megatron.datasets import get_blend_and_blend_per_split, on_all_ranks


@dataclass
class PlainConfig(GPTDatasetConfig):
    """Megatron's configuration, and the model's vocabulary.

    Attributes:
        vocabulary: ids that the model has; others are refused where they are read.
    """

    vocabulary: int = 0


class PlainDataset(GPTDataset):
    """Packed samples of one split of a token file.

    Args:
        indexed_dataset: Megatron's reader of the `.bin` and `.idx` files.
        dataset_path: the files, without their endings.
        indexed_indices: the documents of the split; None is Megatron's for one that is cached.
        num_samples: how many samples are wanted; epochs repeat until there are as many.
        index_split: the split.
        config: see `PlainConfig`.

    Raises:
        DataError: the split has no document.
    """

    def __init__(
        self,
        indexed_dataset: Any,
        dataset_path: str | None,
        indexed_indices: np.ndarray | None,
        num_samples: int | None,
        index_split: Split,
        config: PlainConfig,
    ) -> None:
        if indexed_indices is not None and not len(indexed_indices):
            raise DataError(
                f"{dataset_path}: its {len(indexed_dataset)} documents are too few for the "
                f"{index_split.name} split of --split {config.split}; --split 100,0,0 takes all to "
                "train on, and evaluates on none"
            )
        super().__init__(
            indexed_dataset, dataset_path, indexed_indices, num_samples, index_split, config
        )

    def __getitem__(self, index: int | None) -> dict[str, torch.Tensor]:
        """One sample of s tokens.

        Args:
            index: of the sample; None is Megatron's for one that fills up a batch, which no loss
                is computed on.

        Returns:
            `tokens` and `labels` int64 [s]; `loss_mask` float32 [s], 1 but for padding and, with
            `--eod-mask-loss`, what follows EOD; `span_id` int64 [s], the mask as span 1;
            `position_ids` int64 [s], restarting after EOD under `reset_position_ids`; `sample_id`
            int64 [], the index or -1; and under `reset_attention_mask` `document_ids` int32 [s],
            which count the documents that end in the sample before a token.

        Raises:
            DataError: an id that the model's vocabulary does not have.
        """
        sample = super().__getitem__(index)
        self._check_ids(index, sample)
        sample["span_id"] = sample["loss_mask"].long()
        sample["sample_id"] = torch.tensor(-1 if index is None else index)
        if self.config.reset_attention_mask:
            ends = (sample["tokens"] == self.config.tokenizer.eod).int()
            sample["document_ids"] = (ends.cumsum(0) - ends).int()
        return sample

    def _check_ids(self, index: int | None, sample: dict[str, torch.Tensor]) -> None:
        both = torch.stack((sample["tokens"], sample["labels"]))
        last = self.config.vocabulary - 1
        foreign = both[(both < 0) | (both > last)]
        if foreign.numel():
            raise DataError(
                f"{self.dataset_path}: sample {index} of the {self.index_split.name} split holds "
                f"the id {foreign[0].item()}, outside the vocabulary 0..{last}: it was written "
                "with another tokenizer; train with that one under --legacy-tokenizer"
            )

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: GPTDatasetConfig) -> IndexedDataset:
        """Opens a token file with Megatron, if its size is what its index says.

        Args:
            dataset_path: without `.bin` and `.idx`.
            config: Megatron's.

        Returns:
            Megatron's dataset.

        Raises:
            CorruptDatasetError: `.bin` is shorter than `.idx` says.
        """
        dataset = GPTDataset.build_low_level_dataset(dataset_path, config)
        index, tokens = dataset.index, Path(f"{dataset_path}.bin")
        if len(index.sequence_lengths) and tokens.is_file():
            last = int(index.sequence_lengths[-1]) * index.dtype_size
            expected, found = int(index.sequence_pointers[-1]) + last, tokens.stat().st_size
            if found < expected:
                raise CorruptDatasetError(
                    f"{tokens}: {found} bytes, its index {dataset_path}.idx says {expected}; the "
                    "file is cut short, or not the index's"
                )
        return dataset


class MockDataset(MockGPTDataset, PlainDataset):
    """The same of Megatron's mock data: documents 1, 2, 3 ... EOD of 1 to 4,095 tokens."""


@on_all_ranks
def train_valid_test_datasets_provider(
    train_val_test_num_samples: Sequence[int | None], vp_stage: int | None = None
) -> list[Any]:
    """Megatron's dataset provider over `--data-path` and its kin, or `--mock-data`.

    Every pipeline stage gets samples; of the tensor-parallel ranks only the first does.

    Args:
        train_val_test_num_samples: samples wanted of each split; None is one epoch.
        vp_stage: Megatron's virtual pipeline stage; all get the same samples.

    Returns:
        The train, valid and test datasets, None where there is none and on ranks that read none.

    Raises:
        DataError: a split without documents, or damaged files.
    """
    del vp_stage
    args = get_args()
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    config = PlainConfig(
        **sample_settings(args),
        blend=blend,
        blend_per_split=blend_per_split,
        split=args.split,
        full_validation=args.full_validation,
        num_dataset_builder_threads=args.num_dataset_builder_threads,
        mmap_bin_files=args.mmap_bin_files,
        object_storage_cache_path=args.object_storage_cache_path,
        mid_level_dataset_surplus=args.mid_level_dataset_surplus,
        eod_mask_loss=args.eod_mask_loss,
        vocabulary=args.padded_vocab_size,
    )
    builder = BlendedMegatronDatasetBuilder(
        MockDataset if args.mock_data else PlainDataset,
        list(train_val_test_num_samples),
        reads_samples,
        config,
    )
    datasets: list[Any] = builder.build()
    return datasets
