"""Batches: a step's worth is taken ahead and counted; evaluations and interleaving are safe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from megatron.core import num_microbatches_calculator, parallel_state
from megatron.core.rerun_state_machine import (
    RerunDataIterator,
    RerunMode,
    destroy_rerun_state_machine,
    initialize_rerun_state_machine,
)

from vpmoe.data.batch import Sample, get_batch
from vpmoe.runtime import detect_lane

PARTS, SIZE, LENGTH = 3, 2, 8
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def world(tmp_path: Path) -> Iterator[None]:
    """A world of one, with three micro-batches a step, on whichever lane this machine has."""
    with detect_lane().activate():
        torch.distributed.init_process_group(
            "nccl" if DEVICE == "cuda" else "gloo",
            init_method=f"file://{tmp_path / 'rendezvous'}",
            rank=0,
            world_size=1,
        )
        parallel_state.initialize_model_parallel()
        num_microbatches_calculator.init_num_microbatches_calculator(
            rank=0,
            rampup_batch_size=None,
            global_batch_size=PARTS * SIZE,
            micro_batch_size=SIZE,
            data_parallel_size=1,
        )
        initialize_rerun_state_machine(mode=RerunMode.VALIDATE_RESULTS)
        try:
            yield
        finally:
            destroy_rerun_state_machine()
            num_microbatches_calculator.unset_num_microbatches_calculator()
            parallel_state.destroy_model_parallel()
            torch.distributed.destroy_process_group()


class _Samples:
    """Collated samples from a counter, and how many were taken."""

    def __init__(self, documents: bool = True) -> None:
        self.taken = 0
        self.documents = documents

    def __next__(self) -> Sample:
        self.taken += 1
        generator = torch.Generator().manual_seed(self.taken)
        spans = torch.randint(0, 3, (SIZE, LENGTH), generator=generator)
        ids = torch.full((SIZE, LENGTH), self.taken)
        sample = {
            "tokens": ids,
            "labels": ids + 1,
            "loss_mask": (spans > 0).float(),
            "span_id": spans,
            "position_ids": torch.arange(LENGTH).expand(SIZE, LENGTH),
            "sample_id": torch.arange(SIZE) + self.taken * SIZE,
        }
        if self.documents:
            sample["document_ids"] = torch.zeros(SIZE, LENGTH, dtype=torch.int32)
        return sample


def test_a_step_is_taken_at_once_and_counted() -> None:
    samples = _Samples()
    expected = [next(samples) for _ in range(2 * PARTS)]
    samples.taken = 0
    for step in range(2):
        mine = expected[step * PARTS : (step + 1) * PARTS]
        for part in range(PARTS):
            batch = get_batch(samples)
            assert samples.taken == (step + 1) * PARTS
            assert batch.step is not None
            assert batch.step.parts == PARTS
            counts = [sum(int((s["span_id"] == span).sum()) for s in mine) for span in (1, 2)]
            assert batch.step.counts.tolist() == counts
            assert torch.equal(batch.tokens.cpu(), mine[part]["tokens"])
            assert torch.equal(batch.sample_ids.cpu(), mine[part]["sample_id"])


def test_types_and_device() -> None:
    batch = get_batch(_Samples())
    assert {t.device.type for t in (batch.tokens, batch.loss_mask, batch.span_id)} == {DEVICE}
    assert (batch.tokens.dtype, batch.labels.dtype) == (torch.int64, torch.int64)
    assert batch.loss_mask.dtype == torch.float32
    assert batch.document_ids is not None
    assert batch.document_ids.dtype == torch.int32
    assert get_batch(_Samples(documents=False)).document_ids is None


def test_an_evaluation_takes_one_at_a_time_and_leaves_the_step_alone() -> None:
    training, evaluation = _Samples(), _Samples()
    get_batch(training)
    with torch.no_grad():
        assert get_batch(evaluation).step is None
    assert (training.taken, evaluation.taken) == (PARTS, 1)
    assert int(get_batch(training).tokens[0, 0]) == 2


def test_interleaved_stages_keep_their_own_order() -> None:
    first, second = _Samples(), _Samples()
    order = [(first, 1), (second, 1), (first, 2), (second, 2), (second, 3), (first, 3)]
    for samples, number in order:
        assert int(get_batch(samples).tokens[0, 0]) == number


def test_megatron_can_rerun_a_step() -> None:
    """The rerun state machine rewinds the iterator and expects the same micro-batches."""
    iterator = RerunDataIterator(_Samples())
    before = [get_batch(iterator) for _ in range(PARTS)]
    iterator.rewind()
    again = [get_batch(iterator) for _ in range(PARTS)]
    for one, other in zip(before, again, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert one.step is not None
        assert other.step is not None
        assert torch.equal(one.step.counts, other.step.counts)
    iterator.advance()
    assert int(get_batch(iterator).tokens[0, 0]) == PARTS + 1


def test_a_rank_without_iterator_or_source_is_an_error() -> None:
    with pytest.raises(ValueError, match="no data iterator"):
        get_batch(None)
