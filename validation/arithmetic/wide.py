"""Wide arithmetic: what rounds inside of a kernel is computed in fp64 and rounded once.

Results then repeat bit for bit on any CPU, under any instruction set, BLAS and number of threads,
unless a value lies within some 1e-16 of a rounding boundary: a chance of about 1e-8 an element and
operation. It covers fp32, bf16, fp16 and complex64; what is fp64 already is left as it is, and may
differ in its last places.

`Wide` is a mode of torch's dispatcher: it sees every operation of its thread, in the backward pass
and in the optimizer too, below autograd. It knows aten and no model. `everywhere` takes it to
threads and processes that start inside.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from validation.arithmetic.operations import (
    Kind,
    UnknownOperationError,
    element_name,
    kind_of,
    plain_name,
)

WIDER: Mapping[torch.dtype, torch.dtype] = {
    torch.float32: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float16: torch.float64,
    torch.complex64: torch.complex128,
}
_ROUNDED: Mapping[torch.dtype, torch.dtype] = {
    torch.float64: torch.float32,
    torch.complex128: torch.complex64,
}

# Factories whose type is the default one unless another is asked for, or whole numbers are given.
_OF_WHOLE_NUMBERS = ("arange", "range")


class Wide(TorchDispatchMode):
    """Computes in fp64 what kernels would round inside; see the module.

    Raises:
        UnknownOperationError: an operation on rounded numbers that is in no table of
            `validation.arithmetic.operations`, or on numbers of a layout that fp64 kernels lack.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        kind = kind_of(func)
        if kind is Kind.PASSES:
            return func(*args, **kwargs)
        found = floats(args, kwargs)
        if any(tensor.is_meta for tensor in found):
            return func(*args, **kwargs)  # no numbers, nothing to round
        narrow = [tensor for tensor in found if tensor.dtype in WIDER]
        if kind is Kind.UNKNOWN:
            if func._can_decompose():  # as under inference_mode, where autograd does not
                with self:
                    return func.decompose(*args, **kwargs)
            result = func(*args, **kwargs) if not narrow else None
            if narrow or any(tensor.dtype in WIDER for tensor in floats((result,), {})):
                raise UnknownOperationError(refusal(func))
            return result
        if kind is Kind.EXACT and _rounds_once(func, args, kwargs, narrow):
            return func(*args, **kwargs)
        if any(tensor.layout is not torch.strided for tensor in narrow):
            raise UnknownOperationError(refusal(func, "numbers that are not laid out densely"))
        if not narrow:
            return _without_narrow(func, args, kwargs)
        return _compute(func, args, kwargs)


def refusal(func: Any, what: str = "rounded numbers") -> str:
    """Why an operation is refused, and what to do."""
    return (
        f"{func}: nothing is known of how this operation rounds, and it meets {what}: its results "
        "may differ between machines. Add it to a table of validation/arithmetic/operations.py, "
        'use another operation, or leave the case in arithmetic="native"'
    )


def floats(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors of floating or complex numbers among arguments, those in lists included."""
    found = []
    for value in (*args, *kwargs.values()):
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, torch.Tensor) and (item.is_floating_point() or item.is_complex()):
                found.append(item)
    return found


def _rounds_once(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], narrow: Sequence[torch.Tensor]
) -> bool:
    """Whether add, sub, mul or div is one operation of IEEE 754."""
    return _argument(func, args, kwargs, "alpha", 1) == 1 and not any(
        tensor.is_complex() for tensor in narrow
    )


def _argument(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], name: str, default: Any
) -> Any:
    """An argument by its name in the schema, wherever it was given."""
    if name in kwargs:
        return kwargs[name]
    place = _places(func).get(name)
    return args[place] if place is not None and place < len(args) else default


@functools.cache
def _places(func: Any) -> Mapping[str, int]:
    return {argument.name: place for place, argument in enumerate(func._schema.arguments)}


# --- operations without a narrow number among their arguments ---------------------------------


def _without_narrow(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A factory, a function of whole numbers, or something in fp64 throughout."""
    if "dtype" in _places(func):
        dtype = _argument(func, args, kwargs, "dtype", None)
        if dtype is None and _is_factory(func) and not _whole(func, args):
            dtype = torch.get_default_dtype()
        if isinstance(dtype, torch.dtype) and dtype in WIDER:
            result = func(*args, **{**kwargs, "dtype": WIDER[dtype]})
            return _half_open(func, result, 1.0, dtype)
    if element_name(func) == "_grouped_mm":  # as rounding at random asks for it
        return _write_out(func, _grouped_mm, args, kwargs)
    result = func(*args, **kwargs)
    if not any(tensor.dtype in WIDER for tensor in floats(_listed(result), {})):
        return result
    # A function of whole numbers whose value is none, such as their exponentials.
    wide = func(*_mapped(args, _whole_to_fp64), **kwargs)
    return _mapped_result(wide, _round)


@functools.cache
def _is_factory(func: Any) -> bool:
    return not any("Tensor" in str(argument.type) for argument in func._schema.arguments)


def _whole(func: Any, args: Sequence[Any]) -> bool:
    return plain_name(func) in _OF_WHOLE_NUMBERS and all(isinstance(a, int) for a in args)


def _whole_to_fp64(value: torch.Tensor) -> torch.Tensor:
    return value if value.is_floating_point() or value.is_complex() else value.double()


# --- operations that are computed in fp64 -----------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """How an overload hands over results.

    Attributes:
        written: arguments (place or keyword) that it writes into.
        returned: for each return value the argument that it is; None for a new tensor.
    """

    written: Sequence[int | str]
    returned: Sequence[int | str | None]


@functools.cache
def _form(func: Any) -> _Form:
    written: list[int | str] = []
    by_alias: dict[frozenset[str], int | str] = {}
    for place, argument in enumerate(func._schema.arguments):
        alias = argument.alias_info
        if alias is not None and alias.is_write:
            where: int | str = argument.name if argument.kwarg_only else place
            written.append(where)
            by_alias[frozenset(alias.before_set)] = where
    returned = [
        None if value.alias_info is None else by_alias.get(frozenset(value.alias_info.before_set))
        for value in func._schema.returns
    ]
    return _Form(written, returned)


def _compute(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The operation on copies in fp64; what it writes is rounded back into the originals."""
    form = _form(func)
    narrowest = _result_types(func, args, kwargs)
    wide_args, wide_kwargs = (
        _mapped(args, _widen),
        dict(zip(kwargs, _mapped(tuple(kwargs.values()), _widen), strict=True)),
    )
    dtype = wide_kwargs.get("dtype")
    if isinstance(dtype, torch.dtype) and dtype in WIDER:
        wide_kwargs["dtype"] = WIDER[dtype]
    written_out = _WRITTEN_OUT.get(element_name(func))
    if written_out is None:
        result = func(*wide_args, **wide_kwargs)
    else:
        result = _write_out(func, written_out, wide_args, wide_kwargs)
    for target in form.written:
        mine = _given(func, args, kwargs, target)
        theirs = _given(func, wide_args, wide_kwargs, target)
        for original, copy in zip(_listed(mine), _listed(theirs), strict=True):
            if isinstance(original, torch.Tensor) and original is not copy:
                _store(func, args, original, copy)
    if not form.returned:
        return None
    values = result if isinstance(result, tuple) and len(form.returned) > 1 else (result,)
    out = []
    for where, value in zip(form.returned, values, strict=True):
        if where is None:
            out.append(_mapped_result(value, lambda t: _round_to(t, narrowest)))
        else:
            out.append(_given(func, args, kwargs, where))
    return out[0] if len(out) == 1 else tuple(out)


def _given(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], where: int | str) -> Any:
    """An argument, by its place or its keyword."""
    if isinstance(where, int) and where < len(args):
        return args[where]
    name = where if isinstance(where, str) else str(func._schema.arguments[where].name)
    return kwargs.get(name)


def _store(func: Any, args: Sequence[Any], original: torch.Tensor, copy: torch.Tensor) -> None:
    if original.shape != copy.shape:  # an `out=` that the operation has given its size
        original.resize_(copy.shape)
    end = _end_of_range(func, args)
    original.copy_(copy if end is None else _half_open(func, copy, end, original.dtype))


def _end_of_range(func: Any, args: Sequence[Any]) -> float | None:
    """The end, never drawn, of the range of a uniform draw; None of other operations."""
    if plain_name(func) != "uniform":
        return None
    return float(args[2]) if len(args) > 2 else 1.0


def _half_open(func: Any, drawn: torch.Tensor, end: float, dtype: torch.dtype) -> torch.Tensor:
    """Drawn numbers, rounded; one that would be rounded up to the end stays below it."""
    rounded = drawn.to(dtype)
    if plain_name(func) not in ("uniform", "rand", "rand_like"):
        return rounded
    below = torch.nextafter(torch.tensor(end, dtype=dtype), torch.tensor(-torch.inf, dtype=dtype))
    return torch.where((rounded >= end) & (drawn < end), below, rounded)


# Kernels of these may fuse a product into the sum, or take one of two formulas: step by step they
# are IEEE operations alone.
def _add(a: Any, b: Any, alpha: Any = 1) -> Any:
    return a + b * alpha


def _sub(a: Any, b: Any, alpha: Any = 1) -> Any:
    return a - b * alpha


def _rsub(a: Any, b: Any, alpha: Any = 1) -> Any:
    return b - a * alpha


def _lerp(start: Any, end: Any, weight: Any) -> Any:
    return start + (end - start) * weight


def _addcmul(a: Any, one: Any, two: Any, value: Any = 1) -> Any:
    return a + one * two * value


def _addcdiv(a: Any, one: Any, two: Any, value: Any = 1) -> Any:
    return a + one / two * value


# Of these the kernels know no fp64.
def _grouped_mm(a: Any, b: Any, ends: Any = None) -> Any:
    """One product a group: rows of a, columns of b, or the inner dimension, end at `ends`.

    Both 3-D, without ends, are a batch. Rows and columns behind the last end are zero.
    """
    if ends is None:
        return torch.bmm(a, b)
    parts = [slice(first, end) for first, end in itertools.pairwise([0, *ends.tolist()])]
    if a.ndim == b.ndim == 2:
        return torch.stack([a[:, part] @ b[part] for part in parts])
    if a.ndim == 2:
        result = a.new_zeros(a.shape[0], b.shape[-1])
        for part, matrix in zip(parts, b, strict=True):
            result[part] = a[part] @ matrix
        return result
    result = a.new_zeros(a.shape[-2], b.shape[-1])
    for part, matrix in zip(parts, a, strict=True):
        result[:, part] = matrix @ b[:, part]
    return result


_WRITTEN_OUT: Mapping[str, Callable[..., Any]] = {
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "lerp": _lerp,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "_grouped_mm": _grouped_mm,
}


def _write_out(
    func: Any, formula: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Evaluates the formula for one tensor, or for each of a list; writes where the form does."""
    operands = [*args, *(v for n, v in kwargs.items() if n in ("alpha", "value"))]
    target: Any = kwargs.get("out")
    if plain_name(func).startswith("_foreach_"):
        count = len(args[0])
        results = [formula(*(_element(o, i, count) for o in operands)) for i in range(count)]
    else:
        results = [formula(*operands)]
    if func._schema.name.endswith("_"):
        target = args[0]
    if target is None:
        return results if plain_name(func).startswith("_foreach_") else results[0]
    for tensor, result in zip(_listed(target), results, strict=True):
        if tensor.shape != result.shape:
            tensor.resize_(result.shape)
        tensor.copy_(result)
    return target


def _element(operand: Any, index: int, count: int) -> Any:
    """What an argument of a foreach form says of one tensor."""
    if isinstance(operand, list | tuple):
        return operand[index]
    if isinstance(operand, torch.Tensor) and operand.ndim == 1 and len(operand) == count:
        return operand[index]  # a tensor of one factor for each
    return operand


# --- types ------------------------------------------------------------------------------------


def _result_types(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.dtype | None:
    """The type that results are rounded to; None where the operation's own result is fp64.

    Raises:
        UnknownOperationError: numbers of several types, whose result torch cannot tell beforehand.
    """
    asked = kwargs.get("dtype")
    if asked is not None:
        return asked if asked in WIDER else None
    numbers = args[:1] if plain_name(func).startswith("_foreach_") else args
    found = {tensor.dtype for tensor in floats(numbers, kwargs)}
    real = found - {torch.complex64}
    if found == {torch.complex64}:
        return torch.float32
    if len(real) == 1:
        return next(iter(real))
    return _inferred(func, args, kwargs)


def _inferred(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.dtype | None:
    def empty(value: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(value, device="meta")

    form = _form(func)
    if form.written:  # the type of what it writes is fixed
        return None
    try:
        result = func(
            *_mapped(args, empty),
            **dict(zip(kwargs, _mapped(tuple(kwargs.values()), empty), strict=True)),
        )
    except (RuntimeError, NotImplementedError) as error:
        given = ", ".join(sorted({str(t.dtype) for t in floats(args, kwargs)}))
        raise UnknownOperationError(refusal(func, f"numbers of several types ({given})")) from error
    types = {tensor.dtype for tensor in floats(_listed(result), {})}
    if len(types) > 1:
        raise UnknownOperationError(refusal(func, "and returns, numbers of several types"))
    found = next(iter(types), None)
    return found if found in WIDER else None


def _widen(value: torch.Tensor) -> torch.Tensor:
    wider = WIDER.get(value.dtype)
    return value if wider is None else value.to(wider)


def _round(value: torch.Tensor) -> torch.Tensor:
    return value.to(_ROUNDED.get(value.dtype, value.dtype))


def _round_to(value: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    if dtype is None:
        return value
    if value.dtype is torch.complex128:
        return value.to(torch.complex64)
    return value.to(dtype) if value.dtype is torch.float64 else value


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _mapped(values: Sequence[Any], change: Callable[[torch.Tensor], torch.Tensor]) -> list[Any]:
    """Arguments with every tensor changed, those in lists included."""
    return [
        [change(item) if isinstance(item, torch.Tensor) else item for item in value]
        if isinstance(value, list | tuple)
        else (change(value) if isinstance(value, torch.Tensor) else value)
        for value in values
    ]


def _mapped_result(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_mapped_result(item, change) for item in value)
    return change(value) if isinstance(value, torch.Tensor) else value
