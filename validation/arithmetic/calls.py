"""One call of a torch operation: arguments by name, evaluation in fp64, results by schema."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from validation.arithmetic.operations import element_name

# Arguments that the fused optimizers want in fp32.
KEPT = frozenset({"state_steps", "grad_scale", "found_inf"})

# Elements that torch computes in one thread: starting two costs more than it gains.
_PART = 3 << 13


class Call:
    """One call of an operation.

    Args:
        func: the overload (`torch._ops.OpOverload`).
        args: that it was called with.
        kwargs: that it was called with.

    Attributes:
        name: of the plain operation: `add` of `_foreach_add_.List`.
        places: argument -> its place.
        has_tensors: whether any argument is one.
        on_meta: whether there are no numbers.
        dense: whether all tensors are laid out densely.
        narrow: fp32 arguments.
        wide: whether the result is fp64 by an argument that is.
        mixed: whether other types that are rounded take part.
        regular: whether all of what it returns is new, or all was written into.
        out: the argument of that name.
        plain_results: what the operation itself has returned, where it was called.
    """

    name: str
    places: Mapping[str, int]
    has_tensors: bool
    on_meta: bool
    dense: bool
    narrow: list[torch.Tensor]
    wide: bool
    mixed: bool
    regular: bool
    out: Any
    plain_results: Any

    def __init__(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.name = element_name(func)
        self.places = _places(func)
        tensors = [t for t in flat((*args, *kwargs.values())) if isinstance(t, torch.Tensor)]
        self.has_tensors = bool(tensors)
        self.on_meta = any(tensor.is_meta for tensor in tensors)
        self.dense = all(tensor.layout is torch.strided for tensor in tensors)
        self.narrow = [tensor for tensor in tensors if tensor.dtype is torch.float32]
        # A number in a tensor does not decide the type of the result.
        self.wide = kwargs.get("dtype") is torch.float64 or any(
            tensor.dtype is torch.float64 and tensor.ndim for tensor in tensors
        )
        self.mixed = kwargs.get("dtype") not in (None, torch.float32, torch.float64) or any(
            tensor.dtype in (torch.bfloat16, torch.float16) or tensor.is_complex()
            for tensor in tensors
        )
        self.out = kwargs.get("out")
        self.plain_results = None
        returned = [value.alias_info is not None for value in func._schema.returns]
        self.regular = all(returned) or not any(returned)

    def plain(self) -> Any:
        """The operation as it is."""
        return self.func(*self.args, **self.kwargs)

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the schema, wherever it was given."""
        place = self.places.get(name)
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[place] if place is not None and place < len(self.args) else default

    def with_arguments(self, changed: Mapping[str, Any]) -> Any:
        """The operation with other values of some arguments."""
        args = list(self.args)
        kwargs = dict(self.kwargs)
        for name, value in changed.items():
            if name in kwargs:
                kwargs[name] = value
            else:
                args[self.places[name]] = value
        return self.func(*args, **kwargs)

    def in_fp64(
        self, change: Callable[[torch.Tensor, str], torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """Evaluates the operation in fp64; no argument is touched.

        Args:
            change: given each fp32 argument and its name, returns what to take in its place.

        Returns:
            The fp64 tensors: what the operation writes, then what it returns.
        """
        found = self._evaluated(lambda x, name: (change(x, name) if change else x).double())
        return [tensor for tensor in found if tensor.dtype is torch.float64]

    def with_changed(
        self, change: Callable[[torch.Tensor, str], torch.Tensor]
    ) -> list[torch.Tensor]:
        """The same as the operation itself finds it, of other values; no argument is touched."""

        def changed(value: torch.Tensor, name: str) -> torch.Tensor:
            other = change(value, name)
            return value.clone() if other is value and name in _written(self.func) else other

        return self._evaluated(changed)

    def _evaluated(self, change: Callable[[torch.Tensor, str], torch.Tensor]) -> list[torch.Tensor]:
        written = _written(self.func)

        def changed(value: Any, name: str) -> Any:
            if isinstance(value, list | tuple):
                return [changed(item, name) for item in value]
            if not isinstance(value, torch.Tensor):
                return value
            if value.dtype is not torch.float32 or name in KEPT:
                # Also what it writes of another type, such as places of the largest numbers.
                return value.clone() if name in written else value
            taken = change(value, name)
            types.add(taken.dtype)
            return taken

        types: set[torch.dtype] = set()
        names = [argument.name for argument in self.func._schema.arguments]
        args = [changed(value, name) for value, name in zip(self.args, names, strict=False)]
        kwargs = {name: changed(value, name) for name, value in self.kwargs.items()}
        if kwargs.get("dtype") is torch.float32 and types == {torch.float64}:
            kwargs["dtype"] = torch.float64
        found = self.func(*args, **kwargs)
        return Call(self.func, args, kwargs).results(found)

    def in_parts(self, rule: Callable[[Call], Any]) -> Any:
        """A rule applied to an operation on elements, a cache's worth of them at a time.

        Temporary tensors of a vocabulary's size would cost more than the arithmetic.
        """
        returns = self.func._schema.returns
        large = [tensor for tensor in self.narrow if tensor.numel() > 1]
        splits = (
            len(large) > 0
            and large[0].numel() > _PART
            and all(t.shape == large[0].shape and t.is_contiguous() for t in large)
            and all(isinstance(value, torch.Tensor | int | float) for value in self.args)
            and len(self.narrow) == sum(isinstance(v, torch.Tensor) for v in self.args)
            and not any(isinstance(value, torch.Tensor) for value in self.kwargs.values())
            and len(returns) == 1
        )
        if not splits:
            return rule(self)
        whole = self.args[0] if _written(self.func) else torch.empty_like(large[0])
        for first in range(0, large[0].numel(), _PART):
            args = [
                value.view(-1)[first : first + _PART]
                if isinstance(value, torch.Tensor) and value.numel() > 1
                else value
                for value in self.args
            ]
            part = rule(Call(self.func, args, self.kwargs))
            if whole is not self.args[0]:
                whole.view(-1)[first : first + _PART] = part
        return whole

    def results(self, found: Any = None) -> list[torch.Tensor]:
        """Tensors that a call has written into, then those that it returned."""
        found = self.plain_results if found is None else found
        mine = [t for name in _written(self.func) for t in flat((self.argument(name),))]
        if not _returns_written(self.func):
            mine += flat((found,))
        return [t for t in mine if isinstance(t, torch.Tensor) and t.is_floating_point()]

    def bases(self) -> list[torch.Tensor]:
        """What an addition adds to, for each of its results."""
        if self.name.startswith("_fused_"):
            first = self.argument("is_first_step", False)  # then the momentum is not initialised
            return [
                torch.zeros_like(tensor) if first and "momentum" in name else tensor
                for name in _written(self.func)
                if name not in KEPT
                for tensor in flat((self.argument(name),))
                if isinstance(tensor, torch.Tensor)
            ]
        base = self.argument("other" if self.name == "rsub" else "self")
        if not isinstance(base, list | tuple | torch.Tensor):
            base = torch.tensor(base, dtype=torch.float64)
        return flat((base,))

    def hand_over(self, values: Sequence[torch.Tensor]) -> Any:
        """Gives values, fp32, to the caller: written where the operation writes, or returned."""
        written = [
            t
            for name in _written(self.func)
            if name not in KEPT
            for t in flat((self.argument(name),))
            if isinstance(t, torch.Tensor) and t.is_floating_point()
        ]
        fresh = list(values[len(written) :])
        for target, value in zip(written, values, strict=False):
            if target.shape != value.shape:  # an `out=` that the operation gives its size
                target.resize_(value.shape)
            target.copy_(value)
        if _returns_written(self.func):
            return self._written_results()
        return self._like_plain(fresh)

    def _written_results(self) -> Any:
        if not self.func._schema.returns:
            return None
        named = [self.argument(name) for name in _returned_names(self.func)]
        return named[0] if len(named) == 1 else tuple(named)

    def _like_plain(self, fresh: list[torch.Tensor]) -> Any:
        """New tensors in the form of the operation's own result, whole numbers among it kept."""
        returns = self.func._schema.returns
        if len(returns) == 1:
            return fresh if "List" in str(returns[0].type) else fresh[0]
        if len(returns) == len(fresh):
            return tuple(fresh)
        form = self.plain_results if self.plain_results is not None else self.plain()
        return tuple(
            fresh.pop(0) if isinstance(t, torch.Tensor) and t.is_floating_point() else t
            for t in form
        )


@functools.cache
def _places(func: Any) -> Mapping[str, int]:
    return {argument.name: place for place, argument in enumerate(func._schema.arguments)}


@functools.cache
def _written(func: Any) -> Sequence[str]:
    """Names of the arguments that an operation writes into."""
    arguments = func._schema.arguments
    return [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]


@functools.cache
def _returns_written(func: Any) -> bool:
    """Whether it returns nothing but what it has written into."""
    returns = func._schema.returns
    return all(value.alias_info is not None for value in returns)


@functools.cache
def _returned_names(func: Any) -> Sequence[str]:
    """The argument that each return value is."""
    by_alias = {
        frozenset(a.alias_info.before_set): a.name
        for a in func._schema.arguments
        if a.alias_info is not None
    }
    return [by_alias[frozenset(r.alias_info.before_set)] for r in func._schema.returns]


def blocks(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Views of tensors of one shape, a cache's worth of elements at a time where that is easy."""
    if not all(tensor.is_contiguous() for tensor in tensors):
        yield tensors
        return
    for first in range(0, max(1, tensors[0].numel()), _PART):
        yield tuple(tensor.view(-1)[first : first + _PART] for tensor in tensors)


def flat(values: Sequence[Any]) -> list[Any]:
    """The values, with those of lists and tuples inside in their place."""
    found: list[Any] = []
    for value in values:
        found += flat(value) if isinstance(value, list | tuple) else [value]
    return found


def narrow_tensors(result: Any) -> list[torch.Tensor]:
    """The fp32 tensors of an operation's result."""
    return [t for t in flat((result,)) if isinstance(t, torch.Tensor) and t.dtype is torch.float32]
