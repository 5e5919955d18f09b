"""Random rounding: what it leaves alone, how far it moves the rest; a seed is a machine."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from validation.arithmetic import arithmetic
from validation.arithmetic.counts import Arithmetic
from validation.arithmetic.operations import UnknownOperationError
from validation.arithmetic.rounding import RandomRounding

SEEDS = (1, 2, 3)


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


A, B, P = numbers(40, 30), numbers(40, 30, seed=2), numbers(40, 30, seed=3).abs() + 0.1
Q = numbers(40, 30, seed=4).abs() + 0.1
INDEX = torch.arange(40) % 7


def under(seed: int, function: Callable[[], Any]) -> Any:
    with RandomRounding(seed):
        return function()


def units(found: Tensor, exact: Tensor) -> float:
    """Largest distance from exact values, fp64, in fp32 epsilons of each; small ones count as
    a thousandth of the largest."""
    size = exact.abs().clamp_min(float(exact.abs().max()) / 1000)
    return float(((found.double() - exact).abs() / size).max()) * 2**23


def in_place(name: str, value: Tensor, *others: Any, **more: Any) -> Tensor:
    copy = value.clone()
    getattr(copy, name)(*others, **more)
    return copy


IEEE = {
    "add": lambda: A + B,
    "sub, in place": lambda: in_place("sub_", A, B),
    "mul": lambda: A * B,
    "div": lambda: A / P,
    "sqrt": P.sqrt,
    "a factor of a power of two": lambda: torch.add(A, B, alpha=-0.25),
    "foreach": lambda: torch._foreach_mul([A, B], [B, P])[1],
    "matrix view": lambda: A.t()[3:, ::2].contiguous(),
    "copies": lambda: torch.cat([A, B])[INDEX].masked_fill(torch.ones(30) > 0, 0.1),
    "largest": lambda: torch.stack([*A.max(dim=1)[:1], A.amin(1), torch.relu(A).amax(1)]),
    "sort": lambda: A.sort(dim=1).values,
    "fp64": lambda: (A.double() @ B.double().t()).exp().sum(),
    "sum in fp64": lambda: A.sum(dtype=torch.float64),
    "sum of whole numbers": lambda: A.round().sum(),
    "mean of whole numbers": lambda: (A * 10).round().mean(),
    "product of whole numbers": lambda: A.round() @ B.round().t(),
    "one of each": lambda: torch.zeros(9, 30).index_add(0, torch.tensor([3, 5]), A[:2]),
    "one hot": lambda: torch.eye(40) @ A,
    "zeros": lambda: torch.zeros(5, 4).softmax(dim=1),
    "draws": lambda: torch.empty(50).normal_(generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("name", IEEE)
def test_what_is_not_rounded_or_rounded_once_keeps_its_bits(name: str) -> None:
    expected = IEEE[name]()
    for seed in SEEDS:
        assert torch.equal(under(seed, IEEE[name]), expected)


# Operation, in fp64 and in fp32; units that the result may be away from the right one.
ROUNDED: dict[str, tuple[Callable[[Callable[[Tensor], Tensor]], Tensor], float]] = {
    "exp": (lambda t: t(A).exp(), 1.5),
    "rsqrt": (lambda t: t(P).rsqrt(), 1.5),
    "sigmoid": (lambda t: t(A).sigmoid(), 1.5),
    "pow": (lambda t: t(P).pow(2.2), 1.5),
    "sin": (lambda t: t(A).sin(), 1.5),
    "out=": (lambda t: torch.exp(t(A), out=torch.empty(0, dtype=t(A).dtype)), 1.5),
    "in place": (lambda t: in_place("exp_", t(A)), 1.5),
    "foreach": (lambda t: torch._foreach_exp([t(A), t(B)])[1], 1.5),
    "sum": (lambda t: t(P).sum(dim=1), 2.5),
    "mean": (lambda t: t(P).mean(), 2.5),
    "norm": (lambda t: torch.linalg.vector_norm(t(A)), 2.5),
    "foreach norm": (lambda t: torch._foreach_norm([t(A), t(B)])[0], 2.5),
    "softmax": (lambda t: t(A).softmax(dim=1), 12.0),
    "layer norm": (lambda t: nn.functional.layer_norm(t(P), (30,)), 600.0),
    "product": (lambda t: t(P) @ t(P).t(), 16.0),
    "batched product": (lambda t: torch.bmm(t(P)[None], t(P).t()[None]), 16.0),
    "product and sum": (lambda t: torch.addmm(t(P) @ t(P).t(), t(P), t(P).t()), 16.0),
    "dot": (lambda t: t(P)[0] @ t(P)[1], 16.0),
    # Only what is added is moved: the result is the nearest number, or its neighbour.
    "lerp": (lambda t: torch.lerp(t(P), t(Q), 0.01), 1.5),
    "lerp, in place": (lambda t: in_place("lerp_", t(P), t(Q), 0.01), 1.5),
    "addcmul": (lambda t: torch.addcmul(t(P), t(Q), t(P), value=0.01), 1.5),
    "addcdiv, foreach": (lambda t: torch._foreach_addcdiv([t(P)], [t(Q)], [t(P)], 0.1)[0], 1.5),
    "add of a factor": (lambda t: torch.add(t(P), t(P), alpha=0.3), 1.5),
    "index_add": (lambda t: t(P)[:7].index_add(0, INDEX, t(P)), 4.0),
    "scatter_add": (
        lambda t: t(P)[:7].scatter_add(0, INDEX[:, None].expand(-1, 30), t(P)),
        4.0,
    ),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_what_is_rounded_moves_by_a_unit_or_so_and_stays_about_right(name: str) -> None:
    function, bound = ROUNDED[name]
    exact = function(lambda t: t.double())
    found = [under(seed, lambda: function(lambda t: t)) for seed in range(12)]
    assert max(units(each, exact) for each in found) <= bound
    assert any(not torch.equal(each, found[0]) for each in found)
    assert all(each.dtype is torch.float32 and each.shape == exact.shape for each in found)


def test_a_sum_that_ends_a_long_way_off_its_terms_is_moved_by_those() -> None:
    terms = torch.tensor([10000.5, 0.25, -9999.25])  # fp32 has their sum, 1.5
    found = {float(under(seed, terms.sum)) for seed in range(20)}
    assert len(found) > 3
    assert all(abs(each - 1.5) < 3e-3 for each in found)


def train(seed: int | None, threads: int = 0, **options: Any) -> tuple[list[Tensor], Tensor]:
    """Initial weights, and weights after three steps."""
    if threads:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
    torch.manual_seed(5)
    with arithmetic("native", seed):
        model = nn.Sequential(nn.Embedding(20, 16), nn.LayerNorm(16), nn.Linear(16, 20), nn.GELU())
        first = [p.detach().clone() for p in model.parameters()]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, **options)
        for _ in range(3):
            tokens = torch.randint(0, 20, (33,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(tokens[:-1]), tokens[1:]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    if threads:
        torch.set_num_threads(before)
    return first, torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}, {"amsgrad": True}])
def test_a_training_is_shaken_the_same_way_by_the_same_seed(options: dict[str, Any]) -> None:
    first, plain = train(None, **options)
    stream = torch.random.get_rng_state()
    found = {}
    for seed in SEEDS:
        begun, found[seed] = train(seed, **options)
        assert all(map(torch.equal, begun, first)), "initial weights are draws"
        assert torch.equal(torch.random.get_rng_state(), stream)
        assert torch.equal(train(seed, **options)[1], found[seed])
        assert 0.0 < float((found[seed] - plain).norm() / plain.norm()) < 1e-4
    assert not torch.equal(found[1], found[2])


def test_a_seed_is_a_machine() -> None:
    """The same numbers give the same result, and scaled by a power of two the scaled one."""
    for seed in SEEDS:
        with RandomRounding(seed):
            one = (A @ B.t()).softmax(dim=1).log()
            assert torch.equal((A @ B.t()).softmax(dim=1).log(), one)
            assert torch.equal((8.0 * A) @ B.t(), 8.0 * (A @ B.t()))
            assert torch.equal((0.25 * P).sum(), 0.25 * P.sum())


def test_large_tensors_are_taken_in_parts_without_a_trace() -> None:
    large = numbers(300, 500)
    with RandomRounding(4):
        whole = large.exp(), large.clone().addcmul_(large, large, value=0.3)
        parts = large[:7].exp(), large[:7].clone().addcmul_(large[:7], large[:7], value=0.3)
        column = large.t().exp()
    assert torch.equal(whole[0][:7], parts[0])
    assert torch.equal(whole[1][:7], parts[1])
    assert torch.equal(column.t(), whole[0])


def test_it_counts_what_it_shakes_and_the_longest_sum() -> None:
    counts = Arithmetic()
    with RandomRounding(1, counts):
        _ = A + B, A.round().sum()
        assert counts.shaken == 0
        _ = A.exp()
        assert counts.shaken == 1
        _ = numbers(3, 777) @ numbers(777, 2)
        assert counts.largest_sum == 1200  # the sum above
        _ = numbers(2, 5000).softmax(dim=1)
        assert counts.largest_sum == 5000
        _ = numbers(100, 100).norm()  # a root halves the error
        assert counts.largest_sum == 5000


def test_an_operation_that_nobody_knows_is_refused_by_name() -> None:
    with torch.library._scoped_library("golden_test", "DEF") as library:
        library.define("mystery(Tensor x) -> Tensor")
        library.impl("mystery", lambda x: x * 2, "CompositeExplicitAutograd")
        mystery = torch.ops.golden_test.mystery
        with RandomRounding(1):
            with pytest.raises(UnknownOperationError, match=r"golden_test\.mystery"):
                mystery(A)
            assert torch.equal(mystery(torch.arange(3)), torch.arange(3) * 2)


def test_nothing_is_moved_outside_or_without_a_seed() -> None:
    expected = A.exp()
    with arithmetic("native") as counts:
        assert torch.equal(A.exp(), expected)
    assert counts == Arithmetic()
    with arithmetic("native", 1) as counts:
        assert not torch.equal(A.exp(), expected)
    assert counts.shaken == 1
    assert torch.equal(A.exp(), expected)
