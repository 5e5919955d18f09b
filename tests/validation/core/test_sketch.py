"""The sketch's estimate of a relative distance against the distance itself, in fp64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from validation.trace.sketch import PROJECTIONS, relative_distance, sketch

PAIRS = 400
Change = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def noise(value: torch.Tensor, source: torch.Generator) -> torch.Tensor:
    return 1e-3 * torch.randn(value.shape, generator=source)


def one_row(value: torch.Tensor, source: torch.Generator) -> torch.Tensor:
    delta = torch.zeros_like(value)
    row = int(torch.randint(value.shape[0], (1,), generator=source))
    delta[row] = torch.randn(value.shape[1], generator=source)
    return delta


def scaled(value: torch.Tensor, source: torch.Generator) -> torch.Tensor:
    return value * 0.01 * (1 + torch.rand((), generator=source))


def constant(value: torch.Tensor, source: torch.Generator) -> torch.Tensor:
    return torch.full_like(value, 0.05) * (1 + torch.rand((), generator=source))


def shifted(value: torch.Tensor, source: torch.Generator) -> torch.Tensor:
    del source
    return value.roll(1, dims=0) - value


def low_rank(value: torch.Tensor, source: torch.Generator) -> torch.Tensor:
    rows, columns = value.shape
    left, right = torch.randn(rows, generator=source), torch.randn(columns, generator=source)
    return 1e-3 * torch.outer(left, right)


@pytest.mark.parametrize("change", [noise, one_row, scaled, constant, shifted, low_rank])
@pytest.mark.parametrize("shape", [(64, 48), (127, 131)])
def test_within_35_percent_for_95_percent_of_pairs(change: Change, shape: tuple[int, int]) -> None:
    source = torch.Generator().manual_seed(5)
    right = 0
    for _ in range(PAIRS):
        value = torch.randn(shape, generator=source)
        other = value + change(value, source)
        difference = (other - value).double().norm()
        truth = float(difference / value.double().norm())
        estimate = relative_distance(sketch(value), sketch(other))
        right += abs(estimate - truth) <= 0.35 * truth
    assert right >= 0.95 * PAIRS, f"{right} of {PAIRS}"


def test_a_sketch_is_small() -> None:
    assert np.dtype(np.float32).itemsize * (PROJECTIONS + 3) + 8 <= 128


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
def test_equality_is_proved_by_content(dtype: torch.dtype) -> None:
    value = torch.arange(5000).to(dtype)
    moved = value.clone()
    moved[4321] += 64  # bfloat16 keeps 8 bits
    assert relative_distance(sketch(value), sketch(value.clone())) == 0.0
    assert relative_distance(sketch(value), sketch(moved)) > 0.0
    assert relative_distance(sketch(value), sketch(value.reshape(50, 100))) == float("inf")
    assert relative_distance(sketch(value.float()), sketch(value.double())) == float("inf")


def test_what_is_not_finite_is_never_near() -> None:
    value = torch.ones(10)
    for bad in (float("nan"), float("inf")):
        other = value.clone()
        other[3] = bad
        for pair in ((value, other), (other, value), (other, other)):
            assert np.isnan(relative_distance(*(sketch(v) for v in pair)))


def test_zeros_and_nothing() -> None:
    zero, one = sketch(torch.zeros(4)), sketch(torch.ones(4))
    assert relative_distance(zero, one) == float("inf")
    assert relative_distance(zero, one, scale=4.0) == pytest.approx(0.5, rel=0.35)
    assert relative_distance(sketch(torch.empty(0)), sketch(torch.empty(0))) == 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 24, 10_000])
def test_numbers_near_the_ends_of_their_type_are_numbers(dtype: torch.dtype, size: int) -> None:
    limits = torch.finfo(dtype)
    values = torch.randn(size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for scale in (limits.max / 8, limits.tiny / 4, limits.smallest_normal):
        value = (values * scale).to(dtype)
        assert relative_distance(sketch(value), sketch(value.clone())) == 0.0
        assert not relative_distance(sketch(value), sketch(value * 0.5)) <= 0.1, scale
    nothing = torch.zeros(size, dtype=dtype)
    almost = nothing.clone()
    almost[0] = limits.smallest_normal
    assert relative_distance(sketch(nothing), sketch(almost)) == float("inf")
    assert relative_distance(sketch(nothing), sketch(-nothing)) == 0.0
