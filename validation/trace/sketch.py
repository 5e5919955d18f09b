"""Sketches: what is kept of a tensor so that two runs' tensors can be compared from a few bytes.

A sketch holds norm, mean, largest magnitude and 24 random projections (120 bytes), a content hash,
dtype and shape. Equal hashes prove equality. The projections estimate the distance of two tensors:
a random-sign bucket sum (count sketch; Charikar, Chen and Farach-Colton 2002) keeps squared
distances in expectation with relative variance 2/24, so an estimated distance is within 35 % of the
true one for more than 95 % of pairs (Johnson and Lindenstrauss 1984).
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

PROJECTIONS = 24
_BUCKET = 256
_BLOCK = PROJECTIONS * _BUCKET
_SEED = 20260101

# Larger tensors on a GPU are projected there, so many blocks at a time.
_ON_DEVICE = 1 << 20
_BLOCKS_AT_ONCE = 4096

# Signs are drawn for so many blocks together, and larger contents are hashed in parts.
_GROUP = 1024
_PART_BYTES = 4 << 20
_THREADS = 16

# Contents on a GPU come in pieces of so many bytes, through so many buffers.
_STAGE_BYTES = 16 * _PART_BYTES
_BUFFERS = 2


@dataclass(frozen=True)
class Sketch:
    """A tensor in brief.

    Attributes:
        dtype: torch's name, such as `float32`.
        shape: sizes.
        norm: Euclidean norm, accumulated in fp64; nan or inf where the tensor has them.
        mean: arithmetic mean.
        abs_max: largest magnitude.
        digest: BLAKE2b-64 of dtype, shape and bytes, of large tensors of their parts' digests.
        projections: 24 fp32 numbers.
    """

    dtype: str
    shape: tuple[int, ...]
    norm: float
    mean: float
    abs_max: float
    digest: str
    projections: tuple[float, ...]


def sketch(tensor: torch.Tensor) -> Sketch:
    """Sketches a tensor of any shape and real dtype, on any device."""
    import torch

    value = tensor.detach()
    flat = value.reshape(-1)
    dtype = str(value.dtype).removeprefix("torch.")
    shape = tuple(value.shape)
    if value.is_cuda and value.numel() > _ON_DEVICE:
        digest = _digest(f"{dtype}{shape}", staged(flat.contiguous().view(torch.uint8)))
        return Sketch(dtype, shape, digest=digest, **_on_device(flat))
    flat = flat.to("cpu")
    content = flat.contiguous().view(torch.uint8).numpy().data
    digest = _digest(f"{dtype}{shape}", [content])
    numbers = flat.to(torch.float64 if flat.dtype == torch.float64 else torch.float32).numpy()
    with np.errstate(all="ignore"):
        mean = float(numbers.mean(dtype=np.float64)) if numbers.size else 0.0
    return Sketch(
        dtype=dtype,
        shape=shape,
        norm=_norm(numbers),
        mean=mean,
        abs_max=float(np.abs(numbers).max()) if numbers.size else 0.0,
        digest=digest,
        projections=tuple(float(p) for p in project(numbers)),
    )


def _digest(header: str, pieces: Iterable[memoryview]) -> str:
    """A hash whose parts are made in parallel: embeddings would take seconds.

    Args:
        header: hashed first.
        pieces: the content in order; all but the last one are multiples of a part. Each must stay
            as it is until the one after the next is asked for.
    """
    hasher = hashlib.blake2b(header.encode(), digest_size=8)
    waiting: deque[list[Future[bytes]]] = deque()
    # Threads of this call alone: a process that keeps some cannot be forked safely.
    with ThreadPoolExecutor(min(_THREADS, len(os.sched_getaffinity(0)))) as pool:
        for index, piece in enumerate(pieces):
            if index == 0 and len(piece) <= _PART_BYTES:  # then it is the only one
                hasher.update(piece)
                return hasher.hexdigest()
            parts = (piece[at : at + _PART_BYTES] for at in range(0, len(piece), _PART_BYTES))
            waiting.append([pool.submit(_part_digest, part) for part in parts])
            if len(waiting) == _BUFFERS:
                _take(hasher, waiting.popleft())
        while waiting:
            _take(hasher, waiting.popleft())
    return hasher.hexdigest()


def _part_digest(part: memoryview) -> bytes:
    return hashlib.blake2b(part, digest_size=32).digest()


def _take(hasher: Any, parts: Sequence[Future[bytes]]) -> None:
    for part in parts:
        hasher.update(part.result())


def staged(content: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor on a GPU in order, through a few pinned buffers in turn.

    Fresh pageable memory for gigabytes would take longer than everything else.
    """
    for index, first in enumerate(range(0, content.numel(), _STAGE_BYTES)):
        part = content[first : first + _STAGE_BYTES]
        buffer = _buffer(index % _BUFFERS, content.is_cuda)[: part.numel()]
        buffer.copy_(part)
        yield memoryview(buffer.numpy())


@functools.cache
def _buffer(number: int, pinned: bool) -> torch.Tensor:
    import torch

    del number
    return torch.empty(_STAGE_BYTES, dtype=torch.uint8, pin_memory=pinned)


def _on_device(flat: torch.Tensor) -> dict[str, Any]:
    """The numbers of a sketch, computed where the tensor is; blocks and signs as in `project`."""
    import torch

    order, signs = (torch.from_numpy(array).to(flat.device) for array in _block())
    squares = total = largest = torch.zeros((), dtype=torch.float64, device=flat.device)
    totals = torch.zeros(PROJECTIONS, dtype=torch.float64, device=flat.device)
    for first in range(0, flat.numel(), _BLOCK * _BLOCKS_AT_ONCE):
        part = flat[first : first + _BLOCK * _BLOCKS_AT_ONCE].float()
        squares = squares + part.double().square().sum()
        total = total + part.sum(dtype=torch.float64)
        largest = torch.maximum(largest, part.abs().max())
        count = -(-part.numel() // _BLOCK)
        blocks = torch.nn.functional.pad(part, (0, count * _BLOCK - part.numel()))
        blocks = (blocks.view(count, _BLOCK) * signs)[:, order]
        sums = blocks.view(count, PROJECTIONS, _BUCKET).sum(dim=-1, dtype=torch.float64)
        start = first // _BLOCK
        turned = _signs_of_blocks(start, count)
        totals += (sums * torch.from_numpy(turned).to(flat.device)).sum(dim=0)
    return {
        "norm": float(squares.sqrt()),
        "mean": float(total) / flat.numel(),
        "abs_max": float(largest),
        "projections": tuple(totals.float().tolist()),
    }


def project(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The 24 projections of a flat array, fp32.

    They are the same for the same array on any machine, up to fp32 rounding.
    """
    order, signs = _block()
    totals = np.zeros(PROJECTIONS)
    turned = _signs_of_blocks(0, -(-numbers.size // _BLOCK))
    with np.errstate(all="ignore"):
        for index, start in enumerate(range(0, numbers.size, _BLOCK)):
            block = np.zeros(_BLOCK, dtype=numbers.dtype)
            part = numbers[start : start + _BLOCK]
            block[: part.size] = part
            sums = (
                (block * signs)[order].reshape(PROJECTIONS, _BUCKET).sum(axis=1, dtype=np.float64)
            )
            totals += sums * turned[index]
        return totals.astype(np.float32)


def relative_distance(expected: Sketch, actual: Sketch, scale: float = 0.0) -> float:
    """Estimates ||actual - expected|| / max(||expected||, scale).

    Exactly 0 for equal hashes, and above 0 for others; never below the exact difference of the
    norms; nan where either tensor has nan, inf where shapes or dtypes differ, or where equal hashes
    have other numbers beside them: such a record was edited.
    """
    if (expected.shape, expected.dtype) != (actual.shape, actual.dtype):
        return math.inf
    if not all(math.isfinite(n) for n in (expected.norm, actual.norm)):
        return math.nan
    if expected.digest == actual.digest:
        return 0.0 if _agree(expected, actual) else math.inf
    with np.errstate(all="ignore"):
        difference = np.subtract(
            np.asarray(actual.projections), np.asarray(expected.projections), dtype=np.float64
        )
    distance = max(float(np.linalg.norm(difference)), abs(actual.norm - expected.norm))
    reference = max(expected.norm, scale)
    if reference == 0.0:
        # Zeros of other signs are alike; what is too small for a square, or for fp32, is no zero.
        return 0.0 if expected.abs_max == actual.abs_max == 0.0 else math.inf
    # Other bytes are another tensor, even where no projection shows it.
    return max(distance / reference, sys.float_info.min)


def _agree(one: Sketch, other: Sketch) -> bool:
    """Whether the numbers of two sketches are of one tensor, up to the order of their sums."""
    rounding = 1e-5 * max(one.norm, one.abs_max)
    pairs = [
        (one.norm, other.norm),
        (one.mean, other.mean),
        (one.abs_max, other.abs_max),
        *zip(one.projections, other.projections, strict=True),
    ]
    # Sums of huge numbers are infinite, or their difference is NaN, on both sides.
    return all(a == b or abs(a - b) <= rounding or (a != a and b != b) for a, b in pairs)


def _norm(numbers: np.ndarray[Any, Any]) -> float:
    with np.errstate(all="ignore"):
        total = 0.0
        for start in range(0, numbers.size, 1 << 20):
            part = numbers[start : start + (1 << 20)].astype(np.float64)
            total += float(np.dot(part, part))
        if total in (0.0, math.inf):
            largest = float(np.abs(numbers).max(initial=0.0))
            if 0.0 < largest < math.inf:  # the squares of finite numbers left fp64
                return float(min(largest * np.linalg.norm(numbers / largest), sys.float_info.max))
    return math.sqrt(total) if not math.isnan(total) else math.nan


@functools.cache
def _block() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    random = np.random.Generator(np.random.Philox(_SEED))
    signs = random.integers(0, 2, _BLOCK, dtype=np.int8) * 2 - 1
    return random.permutation(_BLOCK), signs.astype(np.float32)


def _signs_of_blocks(first: int, count: int) -> np.ndarray[Any, Any]:
    """Signs of consecutive blocks, fp64 [count, 24]."""
    if count == 0:
        return np.zeros((0, PROJECTIONS))
    groups = range(first // _GROUP, (first + count - 1) // _GROUP + 1)
    signs = np.concatenate([_group_signs(group) for group in groups])
    start = first - groups[0] * _GROUP
    return signs[start : start + count]


@functools.lru_cache(maxsize=256)
def _group_signs(group: int) -> np.ndarray[Any, Any]:
    random = np.random.Generator(np.random.Philox(key=_SEED, counter=group + 1))
    return random.integers(0, 2, (_GROUP, PROJECTIONS), dtype=np.int8) * 2.0 - 1.0
