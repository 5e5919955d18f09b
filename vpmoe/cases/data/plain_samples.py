"""Records of plain data: Megatron's token files and its mock data as vpMoE's samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from validation.running.recorder import Recorder
from vpmoe.cases.data.refusing import record_refusal
from vpmoe.data import plain, samples
from vpmoe.megatron.datasets import TOKEN_FILES
from vpmoe.runtime.patches import replaced

_EOD, _LENGTH, _VOCABULARY = 99, 16, 100
# Of all lengths from one token, which is EOD, to some that fill samples; one ends without EOD.
_DOCUMENTS = [[*range(1, 1 + n), _EOD] for n in (5, 0, 1, 40, 7, 16, 15, 3, 31, 2)] + [[7, 8, 9]]


def record_plain_samples(recorder: Recorder, folder: Path) -> None:
    """Records the samples that Megatron's dataset provider gives of each kind of plain data.

    Args:
        recorder: of this process, in which Megatron's groups are initialized.
        folder: an empty one.
    """
    first = _written(folder / "first", _DOCUMENTS)
    second = _written(folder / "second", [[50, 51, 52, _EOD]] * 20)
    kinds: dict[str, dict[str, Any]] = {
        "split": {"data_path": [first], "split": "70,30,0"},
        "blend": {"data_path": ["0.25", first, "0.75", second], "split": "100,0,0"},
        "each": {"train_data_path": [first], "valid_data_path": [second]},
        "end_masked": {"data_path": [first], "split": "100,0,0", "eod_mask_loss": True},
        "without_resets": {
            "data_path": [first],
            "split": "100,0,0",
            "reset_position_ids": False,
            "reset_attention_mask": False,
        },
        "mock": {"mock_data": True, "split": "1,1,1", "seq_length": 40},
    }
    for name, changes in kinds.items():
        for split, dataset in zip(("train", "valid", "test"), _provided(**changes), strict=True):
            place = f"plain/{name}/{split}"
            if dataset is None:
                recorder.discrete(place, None, phase="data")
                continue
            for index in range(6):
                _record_sample(recorder, f"{place}/{index}", dataset[index])
            _law(recorder, place, [dataset[index] for index in range(6)])
    (train, *_) = _provided(data_path=[first], split="100,0,0")
    _record_sample(recorder, "plain/filling", train[None])
    foreign = _written(folder / "foreign", [[*range(1, 40), _VOCABULARY, _EOD]])
    negative = _written(folder / "negative", [[*range(1, 40), -5, _EOD]])
    cut = _written(folder / "cut", _DOCUMENTS)
    content = Path(f"{cut}.bin").read_bytes()
    Path(f"{cut}.bin").write_bytes(content[:-4])
    refusals: dict[str, Callable[[], Any]] = {
        "foreign": lambda: _all(_provided(data_path=[foreign], split="100,0,0")[0]),
        "negative": lambda: _all(_provided(data_path=[negative], split="100,0,0")[0]),
        "cut": lambda: len(_provided(data_path=[cut], split="100,0,0")),
        "no_documents": lambda: len(_provided(data_path=[first], split="969,30,1")),
    }
    for name, call in refusals.items():
        record_refusal(recorder, f"plain/refused/{name}", call, folder)


def _written(folder: Path, documents: list[list[int]]) -> str:
    """A token file of Megatron's; returns its path without endings."""
    folder.mkdir()
    prefix = str(folder / "tokens")
    builder = TOKEN_FILES.take("IndexedDatasetBuilder")(f"{prefix}.bin", dtype=np.int32)
    for document in documents:
        builder.add_document(np.array(document), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return prefix


def _provided(**changes: Any) -> list[Any]:
    """What Megatron's dataset provider gives for 12 samples of each split."""
    given: dict[str, Any] = {
        "data_path": None,
        "data_args_path": None,
        "train_data_path": None,
        "valid_data_path": None,
        "test_data_path": None,
        "per_split_data_args_path": None,
        "mock_data": False,
        "split": None,
        "seed": 7,
        "seq_length": _LENGTH,
        "data_cache_path": None,
        "dataloader_fast_cache_load": False,
        "dataloader_defer_npy_index_mmap": False,
        "reset_position_ids": True,
        "reset_attention_mask": True,
        "eod_mask_loss": False,
        "full_validation": False,
        "num_dataset_builder_threads": 1,
        "mmap_bin_files": True,
        "object_storage_cache_path": None,
        "mid_level_dataset_surplus": 0.005,
        "padded_vocab_size": _VOCABULARY,
    }
    args = SimpleNamespace(**given | changes)
    tokenizer = SimpleNamespace(
        eod=_EOD, eos=_EOD, pad=-1, vocab_size=_VOCABULARY, unique_identifiers={"class": "case"}
    )
    with (
        replaced(plain, "get_args", lambda: args),
        replaced(samples, "get_tokenizer", lambda: tokenizer),
    ):
        return plain.train_valid_test_datasets_provider([12, 12, 12])


def _all(dataset: Any) -> int:
    return sum(len(dataset[index]["tokens"]) for index in range(len(dataset)))


def _record_sample(recorder: Recorder, place: str, sample: dict[str, torch.Tensor]) -> None:
    for name, value in sample.items():
        recorder.discrete(place, value.tolist(), tensor=name, phase="data")


def _law(recorder: Recorder, place: str, found: list[dict[str, torch.Tensor]]) -> None:
    """Positions and documents are those that walking the tokens gives."""
    wrong = []
    for index, sample in enumerate(found):
        positions, documents, position, document = [], [], 0, 0
        for token in sample["tokens"].tolist():
            positions.append(position)
            documents.append(document)
            position += 1
            if token == _EOD:
                position, document = 0, document + 1
        if "document_ids" not in sample:
            positions = list(range(len(positions)))
            documents = None  # type: ignore[assignment]
        read = sample["document_ids"].tolist() if "document_ids" in sample else None
        if (sample["position_ids"].tolist(), read) != (positions, documents):
            wrong.append(index)
    recorder.invariant(
        place,
        "positions and documents restart after EOD",
        len(wrong),
        0,
        phase="data",
        tensor="law/documents",
        of=wrong,
    )
