"""Random rounding: each seed is a machine, or a way to write the code, that could exist.

Every operation that rounds inside gives the correctly rounded result of slightly other inputs, of
a sum in another order, or the neighbour of the right result. What IEEE 754 fixes keeps its bits:
one addition, subtraction, product, quotient or square root, copies, comparisons, random draws, and
whatever fp64 shows not to have been rounded at all, such as sums of whole numbers.

| operation | what a seed changes |
| --- | --- |
| product of matrices | the order of the sum over K, and the result by at most a unit |
| function of one number (exp, rsqrt, pow, ...) | the result by at most a unit |
| lerp, addcmul, addcdiv, index_add, a step of an optimizer | what is added, by a unit |
| any other that rounds (sum, norm, softmax, loss, ...) | inputs and result by at most a unit |

A unit is one in the last place of fp32. Which way a number is moved follows from its digits, the
operation and the seed: like a machine, a seed gives the same result for the same numbers, on any
thread or rank, and scaled by a power of two the scaled one. No random stream is drawn from.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from validation.arithmetic.calls import Call, blocks, narrow_tensors
from validation.arithmetic.counts import Arithmetic
from validation.arithmetic.operations import (
    EXACT,
    Kind,
    UnknownOperationError,
    kind_of,
    plain_name,
)
from validation.arithmetic.sums import longest_sum

# Beyond these a unit in the last place is no relative error any more.
_SMALLEST, _LARGEST = 2.0**-100, 2.0**100
# Two units in the last place and more: what moves inputs and results alone can do.
_SLACK = 2.0**-21


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Rounded once, by IEEE 754.
_IEEE = EXACT | {"sqrt", "reciprocal"}

# Elementary functions: kernels approximate them to about a unit, whatever the argument.
_FUNCTIONS = _words(
    """
    exp exp2 expm1 log log2 log10 log1p pow float_power rsqrt square sin cos tan asin acos atan
    atan2 sinh cosh tanh asinh acosh atanh sigmoid silu erf erfc erfinv lgamma digamma hypot
    """
)

# Products of matrices: the arguments whose last, and last but one, dimension is summed over.
_CONTRACTIONS: Mapping[str, tuple[str, str]] = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "_addmm_activation": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "addbmm": ("batch1", "batch2"),
    "mv": ("self", "vec"),
    "addmv": ("mat", "vec"),
    "dot": ("self", "tensor"),
    "vdot": ("self", "other"),
}

# Something is added to the first argument; of accumulations, the argument that is summed up first.
_ADDED = _words("add sub rsub lerp addcmul addcdiv")
_ACCUMULATED: Mapping[str, str] = {
    "index_add": "source",
    "scatter_add": "src",
    "index_put": "values",
    "_index_put_impl": "values",
    "_unsafe_index_put": "values",
    "_unsafe_masked_index_put_accumulate": "values",
    "put": "source",
}
_BY_ELEMENT = _FUNCTIONS | _ADDED
_OPTIMIZERS = _words("_fused_adagrad _fused_adam _fused_adamw _fused_sgd")


class RandomRounding(TorchDispatchMode):
    """Rounds as the machine of a seed would; see the module.

    Args:
        seed: of the machine.
        counts: told of every operation that was shaken, and of the longest sum.

    Raises:
        UnknownOperationError: an operation on fp32 that is in no table of
            `validation.arithmetic.operations`.
    """

    def __init__(self, seed: int, counts: Arithmetic | None = None) -> None:
        super().__init__()
        self.seed = seed
        self.counts = counts or Arithmetic()
        self._orders: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        call = Call(func, args, kwargs or {})
        kind = kind_of(func)
        if kind is Kind.PASSES or call.on_meta:
            return call.plain()
        if kind is Kind.UNKNOWN and func._can_decompose():
            with self:
                return func.decompose(*args, **call.kwargs)
        if kind is Kind.UNKNOWN:
            result = call.plain()
            if call.narrow or narrow_tensors(result):
                raise UnknownOperationError(
                    f"{func}: nothing is known of how this operation rounds, and it meets fp32: "
                    "add it to a table of validation/arithmetic/operations.py, or use another one"
                )
            return result
        if _draws(func):
            return call.plain()
        if not call.narrow:
            return self._without_inputs(call)
        again = not call.argument("dropout_p", 0.0)  # whether it may run twice: it draws nothing
        if call.wide or call.mixed or not (call.dense and call.regular and again):
            return self._by_result(call)
        rule = self._rule(call)
        if call.name in _BY_ELEMENT and rule != Call.plain:
            before = self.counts.shaken
            result = call.in_parts(rule)
            self.counts.shaken = min(self.counts.shaken, before + 1)  # one operation
            return result
        return rule(call)

    def _rule(self, call: Call) -> Callable[[Call], Any]:
        name = call.name
        alpha = call.argument("alpha", 1)
        if name in _IEEE and not (name in _ADDED and _rounds(alpha)):
            return Call.plain
        if name in _CONTRACTIONS:
            return self._contraction
        if name in _ACCUMULATED and name not in ("index_add", "scatter_add"):
            added = name.endswith("accumulate") or call.argument("accumulate", False)
            return self._addition if added else Call.plain
        if name in _ADDED or name in _ACCUMULATED or name in _OPTIMIZERS:
            return self._addition
        if name == "mean" and bool((call.narrow[0] == call.narrow[0].round()).all()):
            return Call.plain  # an exact sum, and one quotient
        return self._function if name in _FUNCTIONS else self._other

    # --- what a seed does to one operation ---------------------------------------------------

    def _function(self, call: Call) -> Any:
        exact = call.in_fp64()
        return call.hand_over([self._settled(e, e, call.name) for e in exact])

    def _other(self, call: Call) -> Any:
        exact = call.in_fp64()
        # The machine's own way to sum, whose error in a long sum other machines share.
        shaken = call.with_changed(lambda x, _: self._nudged(x, call.name))
        self._count_sum(longest_sum(call.func, call.args, call.kwargs, exact))
        pairs = zip(exact, shaken, strict=True)
        return call.hand_over([self._settled(e, other, call.name) for e, other in pairs])

    def _contraction(self, call: Call) -> Any:
        exact = call.in_fp64()
        left, right = _CONTRACTIONS[call.name]
        one, other = call.argument(left), call.argument(right)
        order = self._order(one.shape[-1])
        call.plain_results = call.with_arguments(
            {
                left: one.index_select(-1, order),
                right: other.index_select(max(-2, -other.ndim), order),
            }
        )
        self._count_sum(one.shape[-1])
        pairs = zip(exact, call.results(), strict=True)
        return call.hand_over([self._settled(e, mine, call.name) for e, mine in pairs])

    def _addition(self, call: Call) -> Any:
        bases = [base.double() for base in call.bases()]
        exact = shaken = call.in_fp64()
        source = _ACCUMULATED.get(call.name)
        if source is not None:
            shaken = call.in_fp64(
                lambda x, name: self._nudged(x, call.name) if name == source else x
            )
            self._count_sum(longest_sum(call.func, call.args, call.kwargs, exact))
        found = []
        for base, right, other in zip(bases, exact, shaken, strict=True):
            added = self._settled(right - base, other - base, call.name)
            found.append((base + added.double()).float())
        return call.hand_over(found)

    def _without_inputs(self, call: Call) -> Any:
        """A factory, a function of whole numbers, or something in fp64 or bf16 throughout."""
        result = call.plain()
        found = narrow_tensors(result)
        if not found or "dtype" not in call.places or call.has_tensors or call.out is not None:
            return self._by_result(call, result) if found else result
        wide = call.func(*call.args, **{**call.kwargs, "dtype": torch.float64})
        return self._settled(wide, wide, call.name)

    def _by_result(self, call: Call, result: Any = None) -> Any:
        """Where fp64 cannot tell what was rounded: every fp32 result is moved that is not whole."""
        result = call.plain() if result is None else result
        if call.name in _IEEE:
            return result
        for tensor in narrow_tensors(result):
            if tensor.layout is torch.strided:
                moved = self._step(tensor, call.name)
                tensor.copy_(torch.where(tensor == tensor.round(), tensor, moved))
                self.counts.shaken += 1
        return result

    # --- single numbers ----------------------------------------------------------------------

    def _settled(self, exact: torch.Tensor, other: torch.Tensor, name: str) -> torch.Tensor:
        """Results in fp32: the exact ones where fp32 has them, elsewhere near the other ones.

        Args:
            exact: right results, fp64.
            other: what this machine finds, not yet moved; fp64 or fp32.
            name: of the operation.
        """
        found = torch.empty_like(exact, dtype=torch.float32)
        any_rounded = False
        for mine, right, theirs in blocks(found, exact, other):
            near = right.float()
            rounded = near.double() != right
            if other is not exact:
                # Terms that cancel were rounded, even where fp32 has what remains of them.
                rounded |= (theirs - right).abs_() > _SLACK * right.abs()
            moved = self._step(near if other is exact else theirs.float(), name)
            torch.where(rounded, moved, near, out=mine)
            any_rounded = any_rounded or bool(rounded.any())
        self.counts.shaken += any_rounded
        return found

    def _nudged(self, value: torch.Tensor, name: str) -> torch.Tensor:
        """Inputs, fp32, moved by up to a unit; whole numbers, whose sums are exact, are not."""
        if bool((value == value.round()).all()):
            return value
        return self._step(value, f"{name} <-")

    def _step(self, value: torch.Tensor, name: str) -> torch.Tensor:
        """Each number, fp32, or one of its neighbours, as seed, name and its digits say."""
        bits = value.view(torch.int32)
        mixed = (bits & 0x7FFFFF).bitwise_xor_(_salt(self.seed, name))
        mixed = mixed.mul_(-1640531527)
        mixed = mixed.bitwise_xor_(mixed >> 15).mul_(-2048144789)
        mixed = mixed.bitwise_xor_(mixed >> 13)
        steps = mixed.bitwise_and_(0xFFFF).mul_(3).bitwise_right_shift_(16).sub_(1)
        size = value.abs()
        steps.mul_((size > _SMALLEST) & (size < _LARGEST))
        return steps.add_(bits).view(torch.float32)

    def _order(self, terms: int) -> torch.Tensor:
        """The order in which this machine adds up so many products."""
        if terms not in self._orders:
            generator = torch.Generator().manual_seed(
                _salt(self.seed, f"order {terms}") & 0x7FFFFFFF
            )
            self._orders[terms] = torch.randperm(terms, generator=generator)
        return self._orders[terms]

    def _count_sum(self, terms: int) -> None:
        self.counts.largest_sum = max(self.counts.largest_sum, terms)


def _rounds(factor: Any) -> bool:
    """Whether a product with this factor is rounded: with a power of two it is not."""
    return isinstance(factor, int | float) and math.frexp(abs(factor))[0] not in (0.0, 0.5)


@functools.cache
def _draws(func: Any) -> bool:
    """Whether it draws random numbers; attention and recurrent layers do so beside computing."""
    seeded = torch.Tag.nondeterministic_seeded in func.tags
    return seeded and not any(word in plain_name(func) for word in ("attention", "rnn", "lstm"))


@functools.cache
def _salt(seed: int, name: str) -> int:
    value = zlib.crc32(f"{seed}/{name}".encode())
    return value - (1 << 32) if value >= 1 << 31 else value
