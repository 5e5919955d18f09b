"""Changes that preserve behaviour up to rounding: every check must let them pass.

The decorator and the changes to how things run are here; other ways to compute the same are in
`rewritten`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from validation.cases.base import Benign
from vpmoe.cases.faults.planting import (
    Planted,
    after,
    arguments,
    keywords,
    patched,
    result,
    with_flags,
)
from vpmoe.megatron import points

_declared: defaultdict[str, list[Benign]] = defaultdict(list)

# Enough for rounding to grow, and for routers to flip if they would.
_STEPS = 6


def harmless(
    name: str, description: str, case: str = "tiny_moe", steps: int | None = _STEPS
) -> Callable[[Callable[[], Planted]], Callable[[], Planted]]:
    """Declares the function below as a harmless change."""

    def declare(plant: Callable[[], Planted]) -> Callable[[], Planted]:
        target = f"{plant.__module__}:{plant.__name__}"
        _declared[plant.__module__].append(
            Benign(id=name, description=description, plant=target, case=case, steps=steps)
        )
        return plant

    return declare


def declared(module: str) -> list[Benign]:
    """The harmless changes of a module, in its order."""
    return list(_declared[module])


@harmless("one-thread", "torch computes with one thread")
def one_thread() -> Planted:
    """Another number of threads."""
    return _threads(1)


@harmless("two-threads", "torch computes with two threads")
def two_threads() -> Planted:
    """Another number of threads."""
    return _threads(2)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@harmless("without-onednn", "matrix products by MKL or plain code, not oneDNN")
@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """Another library of kernels."""
    import torch

    with torch.backends.mkldnn.flags(enabled=False):
        yield


@harmless("denormals-flushed", "denormal numbers are zero")
@contextlib.contextmanager
def denormals_flushed() -> Iterator[None]:
    """What is below 1e-38 was never meant."""
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@harmless("deterministic-algorithms", "torch's deterministic algorithms, where there are any")
@contextlib.contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Other implementations of scatter and gather."""
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@harmless("random-numbers-drawn", "somebody else draws random numbers before every step")
def random_numbers_drawn() -> Planted:
    """vpMoE draws none after its weights."""

    def act(*_: Any) -> None:
        import torch

        torch.rand(7)

    return after("vpmoe.data.batch", "get_batch", act)


@harmless("recompute-attention", "core attention is computed again in the backward pass")
def recompute_attention() -> Planted:
    """Selective activation recomputation."""
    return with_flags("--recompute-granularity", "selective", "--recompute-modules", "core_attn")


@harmless("recompute-layers", "whole layers are computed again in the backward pass")
def recompute_layers() -> Planted:
    """Full activation recomputation."""
    return with_flags(
        "--recompute-granularity",
        "full",
        "--recompute-method",
        "uniform",
        "--recompute-num-layers",
        "1",
    )


@harmless("loaded-by-this-process", "samples are read without worker processes")
def loaded_by_this_process() -> Planted:
    """Another way to load the same samples."""
    return with_flags("--num-workers", "0")


@harmless("loaded-by-four-workers", "samples are read by four worker processes")
def loaded_by_four_workers() -> Planted:
    """Another way to load the same samples."""
    return with_flags("--num-workers", "4")


@harmless("collected-by-hand", "Python's garbage is collected when Megatron says so")
def collected_by_hand() -> Planted:
    """Nothing that training computes."""
    return with_flags("--manual-gc", "--manual-gc-interval", "2")


@harmless("timed-closely", "Megatron's timers measure everything")
def timed_closely() -> Planted:
    """Nothing that training computes."""
    return with_flags("--timing-log-level", "2")


@harmless("another-exact-encoder", "tiktoken itself encodes every text")
def another_exact_encoder() -> Planted:
    """The same ids from another library."""
    return patched("vpmoe.tokenizer.encoder", "Encoder._needs_exact", lambda _: lambda *__: True)


@harmless("dataset-by-two-workers", "the dataset is built by two processes")
def dataset_by_two_workers() -> Planted:
    """The same files, whoever wrote them."""
    return keywords("vpmoe.data.build", "build_dataset", workers=2)


@harmless("batches-copied", "every tensor of a micro-batch is a copy")
def batches_copied() -> Planted:
    """The same numbers elsewhere in memory."""

    def change(batch: Any) -> Any:
        names = ("tokens", "labels", "loss_mask", "span_id", "position_ids", "document_ids")
        copies = {name: getattr(batch, name).clone() for name in names}
        return dataclasses.replace(batch, **copies)

    return result("vpmoe.data.batch", "get_batch", change)


@harmless("documents-renumbered", "documents have other numbers in the attention kernel")
def documents_renumbered() -> Planted:
    """Only their equality matters."""

    def change(q: Any, k: Any, v: Any, offset: Any, ids: Any, pattern: Any) -> tuple[Any, ...]:
        return (q, k, v, offset, None if ids is None else ids * 3 + 5, pattern)

    return arguments("vpmoe.model.attention.backends", "eager_attention", change)


@harmless("module-that-nothing-calls", "every attention has a further module, without parameters")
def module_that_nothing_calls() -> Planted:
    """An internal that is not part of the trace."""

    def act(attention: Any, *_: Any) -> None:
        import torch

        attention.spare = torch.nn.Identity()

    return after("vpmoe.model.attention.core", "CoreAttention.__init__", act)


@harmless("internal-renamed", "TPA composes its heads in a method of another name")
def internal_renamed() -> Planted:
    """An internal that is not part of the trace."""

    def wrap(original: Any) -> Any:
        def compose_heads(self: Any, *args: Any) -> Any:
            return original(self, *args)

        return compose_heads

    return patched("vpmoe.model.tpa", "TensorProductQKV._compose", wrap)


@harmless("no-op-added", "feed-forwards multiply their output by one")
def no_op_added() -> Planted:
    """Another node in the graph."""
    return result(
        *points.DENSE.place,
        lambda found: (found[0] * 1.0, *found[1:]),
    )


@harmless("saved-by-every-rank", "checkpoints are written and read in parallel", "resume", None)
def saved_by_every_rank() -> Planted:
    """Another distribution of the same files."""
    return with_flags("--ckpt-fully-parallel-load")
