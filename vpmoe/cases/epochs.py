"""The target of the case `epochs`: what a training of several epochs reads, without training.

Megatron's own loop, sampler and data set run; a step reads its micro-batches and computes nothing.
What they hold is derived again from the documents: their tokens in the order of the document index
are one stream, whose parts of s + 1 tokens, each beginning with the last token of the one before,
are the samples.
"""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from validation.running.recorder import Recorder
from vpmoe.cases.tokens import record_batch
from vpmoe.cases.training import prepared, train

_SHARE = 0.8  # of an epoch, below which Megatron shuffles the last one by itself


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Reads all micro-batches of a training.

    Args:
        recorder: of this process.
        settings: `preset` (file), `conversations` (JSONL file), `rows` (how many of its first rows
            are the dataset), `flags` (of `vpmoe pretrain`).

    Raises:
        RuntimeError: the training refused or failed.
    """
    import vpmoe.data.dataset as dataset_module
    from vpmoe.megatron.points import TRAIN_STEP
    from vpmoe.runtime.patches import replaced

    reader = _Reader(recorder)
    with tempfile.TemporaryDirectory(prefix="golden-epochs-") as name, ExitStack() as stack:
        rows = Path(name) / "rows.jsonl"
        lines = Path(settings["conversations"]).read_text(encoding="utf-8").splitlines(True)
        rows.write_text("".join(lines[: settings["rows"]]), encoding="utf-8")
        of_rows = {**settings, "conversations": str(rows)}
        flags, _ = stack.enter_context(prepared(recorder, of_rows))
        stack.enter_context(TRAIN_STEP.wrapped(reader.wrap_train_step))
        provider = reader.wrap_provider(dataset_module.train_valid_test_datasets_provider)
        stack.enter_context(
            replaced(dataset_module, "train_valid_test_datasets_provider", provider)
        )
        train(flags)
        reader.check()


class _Reader:
    """Takes the place of a training step, and keeps what it reads.

    Args:
        recorder: of this process.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._dataset: Any = None
        self._read: list[tuple[int, Any]] = []

    def wrap_provider(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Keeps the data set that Megatron is given."""

        @functools.wraps(original)
        def provider(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            self._dataset = found[0]
            return found

        return provider

    def wrap_train_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Reads a step's micro-batches and computes nothing."""
        del original
        from megatron.core.num_microbatches_calculator import get_num_microbatches

        from vpmoe.data.batch import get_batch
        from vpmoe.megatron.points import TRAIN_STEP

        def train_step(*args: Any, **kwargs: Any) -> Any:
            given = TRAIN_STEP.arguments(args, kwargs)
            step = int(given["iteration"]) + 1
            for micro_batch in range(get_num_microbatches()):
                batch = get_batch(given["data_iterator"])
                record_batch(self.recorder, batch, step, micro_batch)
                self._read.append((step, batch))
            # Megatron's result: no losses, not skipped, no checkpoint, no exit, 0, the gradient's
            # norm, its zeros, the largest attention logit.
            return {}, 0, False, False, 0, 0.0, 0, 0.0

        return train_step

    def check(self) -> None:
        """Records the order of documents and samples, and holds what was read against it."""
        dataset = self._dataset
        order = [int(document) for document in dataset.document_index]
        shuffle = [int(position) for position in dataset.shuffle_index]
        self.recorder.table("epochs/documents", [[document] for document in order])
        self.recorder.table("epochs/samples", [[position] for position in shuffle])
        stream = _Stream(dataset.dataset, order, self._read[0][1].tokens.shape[1])
        self._check_order(stream, order, shuffle, dataset.num_samples)
        place = 0
        for step, batch in self._read:
            expected = range(place, place + len(batch.tokens))
            place = expected.stop
            wrong = Counter[str]()
            for row, sample in enumerate(expected):
                wrong["sample_ids"] += int(batch.sample_ids[row]) != sample
                for field, values in stream.sample(shuffle[sample]).items():
                    found = getattr(batch, field)[row].long()
                    wrong[field] += int((found != torch.from_numpy(values)).sum())
            for field, count in wrong.items():
                self._law(f"{field} are the stream's", count, step, field)

    def _check_order(
        self, stream: _Stream, order: Sequence[int], shuffle: Sequence[int], wanted: int
    ) -> None:
        documents, length = stream.documents, stream.length
        of_epoch = stream.tokens_of_epoch
        epochs = next(e for e in range(1, wanted + 2) if (e * of_epoch - 1) // length >= wanted)
        before = ((epochs - 1) * of_epoch - 1) // length if epochs > 1 else 0
        apart = epochs > 1 and wanted - before < int(_SHARE * ((of_epoch - 1) // length))
        last, samples = order[-documents:], (epochs * of_epoch - 1) // length
        self.recorder.discrete(
            "epochs",
            {"epochs": epochs, "samples": samples, "before_the_last": before, "apart": apart},
            tensor="facts",
            phase="data",
        )
        everything = list(range(documents))
        counts = Counter(order[: (epochs - 1) * documents])
        first = shuffle[:before] if apart else shuffle
        for law, broken in (
            ("there are as many epochs as the samples need", len(order) != epochs * documents),
            ("no sample is read twice", sorted(shuffle) != list(range(samples))),
            ("each document is in the last epoch once", apart and sorted(last) != everything),
            (
                "each document is in the epochs before as often as there are any",
                apart and any(counts[document] != epochs - 1 for document in everything),
            ),
            (
                "the samples of the epochs before the last are read first",
                sorted(first) != list(range(len(first))),
            ),
            (
                "an epoch is not in another's order",
                any(
                    last == order[epoch * documents : (epoch + 1) * documents]
                    for epoch in range(epochs - 1)
                ),
            ),
            ("samples are shuffled", first == sorted(first)),
        ):
            self._law(law, int(broken), 0, law)

    def _law(self, law: str, error: int, step: int, tensor: str) -> None:
        self.recorder.invariant(
            "epochs", law, float(error), 0.0, step=step, phase="data", tensor=tensor
        )


class _Stream:
    """A split's documents after each other, cut into samples.

    It knows how many `documents` there are, and the tokens of all of them, `tokens_of_epoch`.

    Args:
        documents: the `DocumentStore`.
        order: of its documents, over all epochs.
        length: tokens of a sample, s.
    """

    def __init__(self, documents: Any, order: Sequence[int], length: int) -> None:
        read = [documents.read(number) for number in range(len(documents))]
        self.documents, self.length = len(read), length
        self.tokens_of_epoch = sum(len(part["tokens"]) for part in read)
        self._fields = {
            name: np.concatenate([read[number][name] for number in order]).astype(np.int64)
            for name in ("tokens", "lossmask", "span")
        }
        sizes = [len(read[number]["tokens"]) for number in order]
        self._slot = np.repeat(np.arange(len(order)), sizes)

    def sample(self, position: int) -> dict[str, np.ndarray]:
        """The sample at a position of the stream: fields of a batch -> int64 [s]."""
        start = position * self.length
        now, later = slice(start, start + self.length), slice(start + 1, start + self.length + 1)
        documents = self._slot[now] - self._slot[start]
        place = np.arange(self.length)
        starts = np.r_[True, documents[1:] != documents[:-1]]
        return {
            "tokens": self._fields["tokens"][now],
            "labels": self._fields["tokens"][later],
            # Stored with the token before the one that they are of.
            "loss_mask": self._fields["lossmask"][now],
            "span_id": self._fields["span"][now],
            "document_ids": documents,
            "position_ids": place - np.maximum.accumulate(np.where(starts, place, 0)),
        }
