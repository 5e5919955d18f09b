"""Polar Express (Amsel et al., 2025): the polar factor of a matrix by odd quintic polynomials.

p_k(X) = a X + b (X X^T) X + c (X X^T)^2 X, each the best odd quintic approximation of 1 on the
interval that the ones before leave the singular values in. Matrix products only, so that it runs in
bf16 on a GPU and over a batch of matrices at once.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

Coefficients = tuple[tuple[float, float, float], ...]

DEFAULT_SAFETY_FACTOR = 2e-2
DEFAULT_ITERATIONS = 5
_LOWER_BOUND = 1e-3
_CUSHION = 0.02
_EPSILON = 1e-6

# The sum of squares of entries beyond this range would overflow fp32, or be small beside _EPSILON.
SMALLEST_ENTRY, LARGEST_ENTRY = 2.0**-20, 2.0**40


@functools.cache
def polar_express_coefficients(
    safety_factor: float = DEFAULT_SAFETY_FACTOR, iterations: int = DEFAULT_ITERATIONS
) -> Coefficients:
    """Computes the coefficients (Polar Express, algorithm 1 and section 3.4), in fp64.

    Args:
        safety_factor: sf; the polynomials but the last are scaled to inputs up to 1 + sf.
        iterations: number of polynomials.

    Returns:
        (a, b, c) for each iteration, for singular values from 1e-3, cushion 0.02.

    Raises:
        ValueError: an argument out of range.
    """
    if not 0.0 <= safety_factor < 1.0:
        raise ValueError(f"safety_factor must be in [0, 1), found {safety_factor}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, found {iterations}")
    lower, upper = _LOWER_BOUND, 1.0
    scale = 1.0 + safety_factor
    result: list[tuple[float, float, float]] = []
    for index in range(iterations):
        a, b, c = _minimax_quintic(max(lower, _CUSHION * upper), upper)
        if _CUSHION * upper > lower:
            centre = 2.0 / (_evaluate(a, b, c, lower) + _evaluate(a, b, c, upper))
            a, b, c = a * centre, b * centre, c * centre
        if index < iterations - 1:
            a, b, c = a / scale, b / scale**3, c / scale**5
        result.append((a, b, c))
        lower = _evaluate(a, b, c, lower)
        upper = 2.0 - lower
    return tuple(result)


def load_coefficients(path: Path) -> Coefficients:
    """Reads coefficients from JSON: a list of [a, b, c].

    Args:
        path: the file.

    Returns:
        (a, b, c) for each iteration.

    Raises:
        ValueError: the file is missing, not JSON, or not a non-empty list of triples of finite
            numbers; the message names the file and the entry.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}; give a JSON file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not valid JSON: {error}; give a list of triples [a, b, c]"
        ) from error
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path}: expected a non-empty list of triples [a, b, c]")
    for index, triple in enumerate(content):
        good = isinstance(triple, list) and len(triple) == 3
        if not good or not all(type(x) in (int, float) and math.isfinite(x) for x in triple):
            raise ValueError(
                f"{path}: entry {index}: expected three finite numbers, found {triple!r}"
            )
    return tuple((float(a), float(b), float(c)) for a, b, c in content)


def polar_express(
    matrices: torch.Tensor,
    coefficients: Coefficients | None = None,
    safety_factor: float = DEFAULT_SAFETY_FACTOR,
    *,
    dtype: torch.dtype | None = None,
    reduce: Callable[[torch.Tensor, str], torch.Tensor] | None = None,
    partition_dim: int | None = None,
) -> torch.Tensor:
    """Approximates the polar factor U V^T of each matrix U S V^T.

    Args:
        matrices: [..., m, n]; leading dimensions are a batch.
        coefficients: of `polar_express_coefficients`; those of `safety_factor` when None.
        safety_factor: the norm is enlarged by 1 + safety_factor first.
        dtype: of the products; by default that of `matrices`, and bf16 for fp32 on a GPU.
        reduce: (tensor, "sum" or "max") to its reduction over the ranks that share the matrices,
            for matrices that are shards.
        partition_dim: the dimension of the shards, 0 or 1; with `reduce`.

    Returns:
        [..., m, n] of `dtype`. Zero matrices give zero.

    Raises:
        ValueError: not a matrix, or `reduce` without `partition_dim`.
    """
    if matrices.ndim < 2:
        raise ValueError(f"expected matrices [..., m, n], found shape {list(matrices.shape)}")
    if (reduce is None) != (partition_dim is None):
        raise ValueError("reduce and partition_dim come together")
    if coefficients is None:
        coefficients = polar_express_coefficients(safety_factor)
    if dtype is None:
        half = matrices.is_cuda and matrices.dtype == torch.float32
        dtype = torch.bfloat16 if half else matrices.dtype
    # The Gram matrix is that of the smaller side, or of the side that is whole on every rank.
    m, n = matrices.shape[-2:]
    transposed = m > n if partition_dim is None else partition_dim == 0
    # Nothing here holds on to the normalised matrices while the iterations replace them.
    x = iterate(
        _normalise(matrices.reshape(-1, m, n), safety_factor, reduce).to(dtype),
        coefficients,
        transposed,
        reduce,
    )
    return x.view(matrices.shape)


def iterate(
    x: torch.Tensor,
    coefficients: Sequence[tuple[float, float, float]],
    transposed: bool,
    reduce: Callable[[torch.Tensor, str], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Applies the polynomials to a batch of matrices of norm at most 1.

    Args:
        x: [b, m, n].
        coefficients: (a, b, c) for each iteration.
        transposed: whether the Gram matrix is X^T X instead of X X^T.
        reduce: sums partial Gram matrices; see `polar_express`.

    Returns:
        [b, m, n].
    """
    for a, b, c in coefficients:
        gram = x.mT @ x if transposed else x @ x.mT
        if reduce is not None:
            gram = reduce(gram, "sum")
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, *((x, gram) if transposed else (gram, x)), beta=a)
        del gram
    return x


def power_of_two(largest: torch.Tensor) -> torch.Tensor:
    """The power of two that brings a matrix into fp32's range; 1 for those that are.

    Args:
        largest: largest absolute entry of each matrix.

    Returns:
        Factors of the same shape, applied with `torch.ldexp`'s exactness in at most one product.
    """
    outside = ((largest < SMALLEST_ENTRY) | (largest > LARGEST_ENTRY)) & (largest > 0)
    _, exponent = torch.frexp(largest)
    # 2^126 is the largest power whose inverse is normal; subnormal gradients stay a bit smaller.
    factor = torch.exp2((-exponent).clamp(-126, 126).to(largest.dtype))
    return torch.where(outside, factor, torch.ones_like(largest))


def _normalise(
    x: torch.Tensor,
    safety_factor: float,
    reduce: Callable[[torch.Tensor, str], torch.Tensor] | None,
) -> torch.Tensor:
    largest = torch.linalg.vector_norm(x, math.inf, dim=(-2, -1), keepdim=True)
    if reduce is not None:
        largest = reduce(largest, "max")
    x = x * power_of_two(largest)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    if reduce is not None:
        norm = reduce(norm.square(), "sum").sqrt()
    return x.div_(norm * (1.0 + safety_factor) + _EPSILON)


def _evaluate(a: float, b: float, c: float, x: float) -> float:
    square = x * x
    return x * (a + square * (b + square * c))


def _minimax_quintic(lower: float, upper: float) -> tuple[float, float, float]:
    """The odd quintic p that minimises max |1 - p| on [lower, upper].

    Remez' exchange with four points: the ends and the two extrema between them, where 1 - p
    alternates between E and -E.
    """
    if lower / upper >= 1.0 - 5e-6:
        # The limit: three derivatives of 1 - p vanish at the point that the interval shrinks to.
        return 15 / 8 / upper, -10 / 8 / upper**3, 3 / 8 / upper**5
    first, second = (3 * lower + upper) / 4, (lower + 3 * upper) / 4
    before = math.inf
    for _ in range(100):
        rows = [
            [x, x**3, x**5, sign]
            for x, sign in zip((lower, first, second, upper), (1, -1, 1, -1), strict=True)
        ]
        system = torch.tensor(rows, dtype=torch.float64)
        ones = torch.ones(4, dtype=torch.float64)
        a, b, c, error = torch.linalg.solve(system, ones).tolist()
        if abs(before - error) <= 1e-15:
            break
        before = error
        root = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))
        first = math.sqrt((-3 * b - root) / (10 * c))
        second = math.sqrt((-3 * b + root) / (10 * c))
    return a, b, c
