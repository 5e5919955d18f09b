"""Coefficients against the published-form table, bounds, and the polar factor of an SVD."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_normuon import TABLE, polar

from vpmoe.optimizer import load_coefficients, polar_express, polar_express_coefficients

# Four digits of the composed polynomials' extrema, 0.84661 and 1.14112, and their rounding.
LOWEST, HIGHEST, ALWAYS = 0.8466 - 5e-5, 1.1411 + 5e-5, 1.16


def with_singular_values(
    m: int, n: int, sigma: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    rank = min(m, n)
    draw = lambda k: torch.linalg.qr(  # noqa: E731
        torch.randn(k, rank, dtype=torch.float64, generator=generator)
    )[0]
    return draw(m) @ torch.diag(sigma) @ draw(n).T


def test_default_coefficients_are_the_table() -> None:
    computed = torch.tensor(polar_express_coefficients(), dtype=torch.float64)
    table = torch.tensor(TABLE, dtype=torch.float64)
    assert float((computed - table).abs().max()) < 1e-12


@pytest.mark.parametrize("iterations", [1, 3, 5, 8, 12])
@pytest.mark.parametrize("safety_factor", [0.0, 0.005, 0.02, 0.05, 0.1])
def test_coefficients_converge_to_one(safety_factor: float, iterations: int) -> None:
    coefficients = polar_express_coefficients(safety_factor, iterations)
    assert len(coefficients) == iterations
    x = torch.logspace(-3, 0, 2000, dtype=torch.float64)
    errors = []
    for a, b, c in coefficients:
        x = a * x + b * x**3 + c * x**5
        errors.append(float((x - 1).abs().max()))
    assert x.min() > 0
    assert errors[-1] <= errors[0]
    if iterations >= 8:
        assert errors[-1] < 1e-3


@pytest.mark.parametrize(("safety_factor", "iterations"), [(-0.1, 5), (1.0, 5), (0.02, 0)])
def test_arguments_out_of_range_are_refused(safety_factor: float, iterations: int) -> None:
    with pytest.raises(ValueError, match=r"safety_factor|iterations"):
        polar_express_coefficients(safety_factor, iterations)


@given(
    m=st.integers(1, 24),
    n=st.integers(1, 24),
    seed=st.integers(0, 10**6),
    smallest=st.floats(-2.9, 0),
)
@settings(max_examples=150, deadline=None)
def test_singular_values_of_the_output(m: int, n: int, seed: int, smallest: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rank = min(m, n)
    sigma = 10 ** (smallest * torch.rand(rank, dtype=torch.float64, generator=generator))
    sigma = sigma / sigma.norm()
    sigma = sigma.clamp_min(1.0001e-3)
    found = torch.linalg.svdvals(polar_express(with_singular_values(m, n, sigma, generator)))
    assert float(found.min()) >= LOWEST
    assert float(found.max()) <= HIGHEST


@given(
    m=st.integers(1, 24),
    n=st.integers(1, 24),
    seed=st.integers(0, 10**6),
    decades=st.floats(0, 12),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=150, deadline=None)
def test_largest_singular_value_in_every_precision(
    m: int, n: int, seed: int, decades: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sigma = 10 ** (-decades * torch.rand(min(m, n), dtype=torch.float64, generator=generator))
    x = with_singular_values(m, n, sigma, generator).float()
    found = torch.linalg.svdvals(polar_express(x, dtype=dtype).double())
    assert float(found.max()) <= ALWAYS


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (1, 30), (30, 1)])
def test_output_is_near_the_polar_factor(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    found = polar_express(x)
    # Same singular vectors, singular values within the bounds: 0.1534 at most from one.
    assert float(torch.linalg.matrix_norm(found - u @ v, 2)) < 0.154
    more = polar_express(x, polar_express_coefficients(0.0, 10), 0.0)
    assert float((more - u @ v).abs().max()) < 1e-9
    assert torch.allclose(found, polar(x), rtol=0, atol=1e-9)


def test_a_batch_is_its_matrices() -> None:
    x = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(2))
    for index in ((0, 0), (1, 2)):
        one = polar_express(x[index])
        assert torch.allclose(polar_express(x)[index], one, rtol=0, atol=1e-6)


def test_zero_gives_zero() -> None:
    assert not polar_express(torch.zeros(3, 5, 7)).any()


@pytest.mark.parametrize("exponent", [-126, -100, -30, 70, 100, 120])
def test_scale_does_not_matter(exponent: int) -> None:
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(3))
    found = polar_express(torch.ldexp(x, torch.tensor(exponent)))
    assert torch.isfinite(found).all()
    assert torch.allclose(found, polar_express(x), rtol=0, atol=2e-5)


@pytest.mark.parametrize("exponent", [39, 45, 59, 61])
def test_sums_of_squares_do_not_overflow(exponent: int) -> None:
    """Large matrices whose entries alone are no trouble."""
    x = torch.randn(128, 256, generator=torch.Generator().manual_seed(3))
    found = polar_express(torch.ldexp(x, torch.tensor(exponent)))
    assert torch.allclose(found, polar_express(x), rtol=0, atol=2e-3)


def test_input_is_left_alone() -> None:
    x = torch.randn(4, 5)
    before = x.clone()
    polar_express(x)
    assert torch.equal(x, before)


def test_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match=r"matrices \[..., m, n\]"):
        polar_express(torch.zeros(5))


def test_coefficients_from_json(tmp_path: Path) -> None:
    path = tmp_path / "coefficients.json"
    path.write_text(json.dumps([[1.5, -0.5, 0], [2, -1.5, 0.5]]))
    assert load_coefficients(path) == ((1.5, -0.5, 0.0), (2.0, -1.5, 0.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not valid JSON"),
        ("[]", "non-empty list"),
        ('{"a": 1}', "non-empty list"),
        ("[[1, 2]]", "entry 0"),
        ("[[1, 2, 3], [1, 2, NaN]]", "entry 1"),
        ('[[1, 2, "3"]]', "entry 0"),
        ("[[1, 2, true]]", "entry 0"),
    ],
)
def test_unusable_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "coefficients.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_coefficients(path)
    assert str(path) in str(caught.value)


def test_missing_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        load_coefficients(tmp_path / "none.json")
