"""Wide arithmetic: the same bits under every instruction set, BLAS path and number of threads."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from validation.arithmetic import arithmetic
from validation.arithmetic.operations import Kind, UnknownOperationError, kind_of
from validation.arithmetic.wide import Wide

REPOSITORY = Path(__file__).resolve().parents[3]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# Each stands for a machine: what its kernels do, the plain settings of this one do not.
SETTINGS = {
    "plain ATen": {"ATEN_CPU_CAPABILITY": "default"},
    "AVX2 ATen, strict BLAS, one thread": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "AVX2,STRICT",
        **ONE_THREAD,
    },
    "compatible BLAS": {"MKL_CBWR": "COMPATIBLE"},
    "SSE BLAS, plain ATen, one thread": {
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ATEN_CPU_CAPABILITY": "default",
        **ONE_THREAD,
    },
}

# On samples of round numbers their weights give halves of a last place, which fp64's own rounding
# then decides.
TIES = ("nn.functional.interpolate", "nn.functional.upsample", "fft.", "polar")


def hashes(kind: str, settings: Mapping[str, str]) -> dict[str, str]:
    """What `hashes.py` prints under settings."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("hashes.py")), kind],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **settings},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    return hashes("wide", {})


def test_most_operations_are_known(here: dict[str, str]) -> None:
    refused = [name for name, value in here.items() if value.startswith("refused")]
    assert len(here) > 3500
    assert {name.split("/")[0] for name in refused} <= {
        "sparse.mm.reduce",
        "sparse.sampled_addmm",
        "to_sparse",
    }


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_operation_repeats_bit_for_bit(
    here: dict[str, str], settings: Mapping[str, str]
) -> None:
    there = hashes("wide", settings)
    other = [name for name in here if there.get(name) != here[name]]
    assert [name for name in other if not name.startswith(TIES)] == []
    assert len(other) <= len(here) // 500


def test_without_it_they_do_not() -> None:
    one, other = (
        hashes("native", {}),
        hashes("native", SETTINGS["SSE BLAS, plain ATen, one thread"]),
    )
    assert sum(other.get(name) != one[name] for name in one) > 100


# --- forms ------------------------------------------------------------------------------------


def once_rounded(function: object, *tensors: torch.Tensor) -> torch.Tensor:
    return function(*(t.double() for t in tensors)).float()  # type: ignore[operator]


def test_in_place_out_and_foreach_forms_are_the_plain_operation() -> None:
    x, y, z = (torch.randn(5, 5) for _ in range(3))
    expected = once_rounded(lambda a, b, c: a + (b * c) * 0.3, x, y, z)
    with Wide():
        plain = torch.addcmul(x, y, z, value=0.3)
        inplace = x.clone().addcmul_(y, z, value=0.3)
        out = torch.empty(0)
        returned = torch.addcmul(x, y, z, value=0.3, out=out)
        lists = [x.clone(), x.clone()]
        torch._foreach_addcmul_(lists, [y, y], [z, z], [0.3, 0.3])
        scalars = torch._foreach_addcmul([x], [y], [z], torch.tensor([0.3], dtype=torch.float64))
    assert returned is out
    for found in (plain, inplace, out, *lists, *scalars):
        assert torch.equal(found, expected)


def test_a_sum_with_a_factor_is_rounded_once() -> None:
    x, y = torch.randn(1000), torch.randn(1000)
    with Wide():
        found = torch.add(x, y, alpha=0.1), torch.sub(x, y, alpha=0.1), x.clone().add_(y, alpha=0.1)
    expected = (x.double() + y.double() * 0.1).float()
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], (x.double() - y.double() * 0.1).float())
    assert torch.equal(found[2], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_too(dtype: torch.dtype) -> None:
    x, y = torch.randn(8, 64).to(dtype), torch.randn(64, 8).to(dtype)
    with Wide():
        found = x @ y
    assert found.dtype is dtype
    assert torch.equal(found, (x.double() @ y.double()).to(dtype))


def test_types_mix_as_torch_mixes_them() -> None:
    x, half = torch.randn(4, 4), torch.randn(4, 4).bfloat16()
    with Wide():
        results = torch.pow(x, half.abs()), torch.atan2(half, x), torch.sum(x, dtype=torch.float64)
        whole = torch.exp(torch.arange(4)), torch.arange(4), torch.arange(0, 1, 0.1)
        counted = torch.ones(4, dtype=torch.bool).sum()
    assert [r.dtype for r in results] == [torch.float32, torch.float32, torch.float64]
    assert [w.dtype for w in whole] == [torch.float32, torch.int64, torch.float32]
    assert counted.dtype is torch.int64
    assert torch.equal(whole[0], torch.exp(torch.arange(4).double()).float())


def test_fp64_is_left_alone() -> None:
    x = torch.randn(50, 50).double()
    with Wide():
        found = x @ x
    assert torch.equal(found, x @ x)


def test_autograd_functions_and_the_backward_pass_are_wide() -> None:
    class Exp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            y = x.exp()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            (y,) = ctx.saved_tensors
            return torch.addcmul(torch.zeros_like(y), y, gradient, value=1.1)

    x = torch.randn(64).requires_grad_()
    with Wide():
        (gradient,) = torch.autograd.grad(Exp.apply(x).sum(), x)
    y = once_rounded(torch.exp, x.detach())
    assert torch.equal(gradient, (y.double() * 1.1).float())


def test_draws_are_half_open_and_leave_one_random_stream() -> None:
    drawn = torch.empty(1)
    with Wide():
        torch.manual_seed(1)
        first = torch.rand(1000), torch.randn(100)
        torch.manual_seed(1)
        assert all(map(torch.equal, first, (torch.rand(1000), torch.randn(100))))
        drawn.uniform_(0, 1)
    assert float(drawn) < 1.0
    below = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    from validation.arithmetic.wide import _half_open

    almost = torch.tensor([1.0 - 1e-12, 0.5]).double()
    almost[0] = 1.0 - 1e-12
    kept = _half_open(torch.ops.aten.uniform_.default, almost, 1.0, torch.float32)
    assert kept.tolist() == [float(below), 0.5]


def test_inference_mode_decomposes_what_autograd_would() -> None:
    layer, x = torch.nn.Linear(64, 64), torch.randn(4, 64)
    with Wide(), torch.inference_mode():
        found = torch.nn.functional.scaled_dot_product_attention(*(layer(x)[None, None],) * 3)
    with Wide():
        expected = torch.nn.functional.scaled_dot_product_attention(*(layer(x)[None, None],) * 3)
    assert torch.equal(found, expected)


def test_compiled_functions_run_as_they_are_written() -> None:
    @torch.compile(backend="eager")
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ x, dim=-1)

    x = torch.randn(16, 16)
    with arithmetic("wide"):
        found = function(x)
        expected = torch.softmax(x @ x, dim=-1)
    assert torch.equal(found, expected)


# --- refusals ---------------------------------------------------------------------------------


@torch.library.custom_op("golden_test::halve", mutates_args=())
def halve(x: torch.Tensor) -> torch.Tensor:
    return x / 2


@halve.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_an_operation_in_no_table_is_refused_by_name() -> None:
    assert kind_of(torch.ops.golden_test.halve.default) is Kind.UNKNOWN
    with Wide(), pytest.raises(UnknownOperationError, match=r"golden_test\.halve\.default"):
        halve(torch.ones(2))
    with Wide():
        assert halve(torch.ones(2).double()).tolist() == [0.5, 0.5]


def test_layouts_without_fp64_kernels_are_refused_by_name() -> None:
    sparse = torch.eye(3).to_sparse()
    with Wide(), pytest.raises(UnknownOperationError, match="not laid out densely"):
        sparse.sqrt()


@pytest.mark.parametrize(
    ("a", "b", "ends"),
    [
        ((6, 4), (3, 4, 8), (2, 2, 6)),  # rows of each group, one of them empty
        ((4, 6), (6, 8), (2, 2, 6)),  # an inner dimension of each: a weight's gradient
        ((3, 8, 4), (4, 6), (2, 2, 6)),  # columns of each
        ((3, 2, 4), (3, 4, 8), None),
    ],
    ids=str,
)
def test_grouped_products_are_those_of_each_group(
    a: tuple[int, ...], b: tuple[int, ...], ends: tuple[int, ...] | None
) -> None:
    generator = torch.Generator().manual_seed(1)
    one, other = torch.randn(a, generator=generator), torch.randn(b, generator=generator)
    offsets = None if ends is None else torch.tensor(ends, dtype=torch.int32)
    with arithmetic("wide"):
        found = torch.ops.aten._grouped_mm(one, other, offsets)
    if ends is None:
        expected = one.double() @ other.double()
    else:
        parts = [range(x, y) for x, y in zip((0, *ends), ends, strict=False)]
        wide, far = one.double(), other.double()
        if a == (6, 4):
            expected = torch.cat([wide[p] @ far[n] for n, p in enumerate(parts)])
        elif a == (4, 6):
            expected = torch.stack([wide[:, p] @ far[p] for p in parts])
        else:
            expected = torch.cat([wide[n] @ far[:, p] for n, p in enumerate(parts)], dim=1)
    assert found.dtype is torch.float32
    assert torch.equal(found, expected.float())


def test_grouped_products_are_rounded_at_random() -> None:
    """Their kernels know no fp64, in which a product is computed before it is rounded."""
    generator = torch.Generator().manual_seed(1)
    one, other = torch.randn(6, 4, generator=generator), torch.randn(2, 4, 5, generator=generator)
    ends = torch.tensor((2, 6), dtype=torch.int32)
    with arithmetic("wide"):
        exact = torch.ops.aten._grouped_mm(one, other, ends)
    with arithmetic("wide", 3):
        found = torch.ops.aten._grouped_mm(one, other, ends)
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)


def test_every_table_names_operations_of_this_torch() -> None:
    from validation.arithmetic import operations

    known = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    known |= {name.removesuffix("_") for name in known}
    tables = operations.EXACT | operations._PASSES | operations._ROUNDS
    assert sorted(tables - known) == []
    assert not (operations._PASSES & operations._ROUNDS)


def test_operations_of_no_table_reach_no_number_without_a_word() -> None:
    """Every operation of aten is known, or refused: none is let through for want of a table."""

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            kinds.add(kind_of(func))
            return func(*args, **(kwargs or {}))

    kinds: set[Kind] = set()
    with Seen():
        torch.nn.functional.cross_entropy(torch.randn(2, 3), torch.tensor([0, 1]))
    assert Kind.UNKNOWN not in kinds
    assert Kind.ROUNDS in kinds
