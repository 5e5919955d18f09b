"""How a bug is declared and planted: a function that patches one name for the length of a run.

    @fault("window-plus-one", "window", "self_attention", "W taken as tokens besides the current")
    def window_plus_one() -> Planted:
        return patched("vpmoe.model.attention.core", "layer_window", wrap)

Its no-op control, `window_plus_one.no_op`, puts the same patch in the same place and passes
everything through.
Nothing of vpMoE is imported before a bug is planted.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

from validation.cases.base import Fault

Planted = AbstractContextManager[Any]

_declared: defaultdict[str, list[Fault]] = defaultdict(list)
_without_effect: ContextVar[bool] = ContextVar("without_effect", default=False)


def fault(
    name: str,
    category: str,
    component: str,
    imitates: str,
    *,
    case: str = "tiny_moe",
    steps: int | None = 1,
    canary: bool = True,
    equivalent: str | None = None,
    gpu: bool = False,
) -> Callable[[Callable[[], Planted]], Callable[[], Planted]]:
    """Declares the function below as a bug.

    Args:
        name: id of the fault.
        category: such as `window`.
        component: module, metric or phase that it should be traced to.
        imitates: what it is like.
        case: the cheapest case that shows it.
        steps: training steps after which it shows; None where a whole run does.
        canary: fit for the bug that every check plants, which must be cheap.
        equivalent: why it changes nothing in the case, if so.
        gpu: whether it shows on the h200 lane too, in the case `wide_pair`.

    Returns:
        The decorator, which returns the function itself.
    """

    def declare(plant: Callable[[], Planted]) -> Callable[[], Planted]:
        target = f"{plant.__module__}:{plant.__name__}"
        _declared[plant.__module__].append(
            Fault(
                id=name,
                category=category,
                component=component,
                imitates=imitates,
                plant=target,
                no_op=f"{target}.no_op",
                case=case,
                canary_steps=steps,
                canary=canary and equivalent is None,
                equivalent=equivalent,
                lanes=("cpu", "h200") if gpu else ("cpu",),
                case_on={"h200": "wide_pair"} if gpu else {},
            )
        )
        plant.no_op = functools.partial(_no_op, plant)  # type: ignore[attr-defined]
        return plant

    return declare


def declared(module: str) -> list[Fault]:
    """The faults of a module, in its order."""
    return list(_declared[module])


@contextlib.contextmanager
def _no_op(plant: Callable[[], Planted]) -> Iterator[None]:
    """A bug's patches, none of which has an effect."""
    with contextlib.ExitStack() as stack:
        token = _without_effect.set(True)
        try:
            stack.enter_context(plant())
        finally:
            _without_effect.reset(token)
        yield


@contextlib.contextmanager
def patched(module: str, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Replaces `module.name` (dots in `name` go into classes) by `wrap(original)`, in the lane.

    Args:
        module: module's full name.
        name: of the object in it.
        wrap: given the original, returns what takes its place.

    Raises:
        MegatronChangedError: a point of `vpmoe.megatron.points` is not what it says.
        KeyError: Megatron's, and no such point.
    """
    from vpmoe.megatron.points import POINTS
    from vpmoe.runtime import detect_lane
    from vpmoe.runtime.patches import replaced

    with detect_lane().activate():
        if module.partition(".")[0] == "megatron":
            POINTS[module, name].contract.check()
        owner: Any = importlib.import_module(module)
        *outer, attribute = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        original = getattr(owner, attribute)
        changed = _passed_through(original) if _without_effect.get() else wrap(original)
        with replaced(owner, attribute, changed):
            yield


def _passed_through(original: Any) -> Any:
    if isinstance(original, property):
        return property(lambda self: original.fget(self))  # type: ignore[misc]
    if not callable(original):
        return original
    return lambda *args, **kwargs: original(*args, **kwargs)


@contextlib.contextmanager
def together(*plants: Planted) -> Iterator[None]:
    """Several patches that make one bug."""
    with contextlib.ExitStack() as stack:
        for plant in plants:
            stack.enter_context(plant)
        yield


def arguments(module: str, name: str, change: Callable[..., tuple[Any, ...]]) -> Planted:
    """Calls `module.name` with `change(*its positional arguments)` instead."""

    def wrap(original: Any) -> Any:
        return lambda *args, **kwargs: original(*change(*args), **kwargs)

    return patched(module, name, wrap)


def result(module: str, name: str, change: Callable[[Any], Any]) -> Planted:
    """Lets `module.name` return `change(its result)`."""

    def wrap(original: Any) -> Any:
        return lambda *args, **kwargs: change(original(*args, **kwargs))

    return patched(module, name, wrap)


def keywords(module: str, name: str, **values: Any) -> Planted:
    """Calls `module.name` with these keyword arguments put over its own."""

    def wrap(original: Any) -> Any:
        return lambda *args, **kwargs: original(*args, **{**kwargs, **values})

    return patched(module, name, wrap)


def after(module: str, name: str, act: Callable[..., None]) -> Planted:
    """Calls `act(*its positional arguments)` after `module.name`, whose result stays."""

    def wrap(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            act(*args)
            return found

        return call

    return patched(module, name, wrap)


def skipped(module: str, name: str) -> Planted:
    """Lets `module.name` do nothing."""
    return patched(module, name, lambda original: lambda *args, **kwargs: None)


def with_flags(*flags: str, resumed: bool = False) -> Planted:
    """Trains with further flags.

    Args:
        *flags: put after the run's own, which they override.
        resumed: only when a checkpoint is loaded.

    Returns:
        The context that plants them.
    """

    def change(given: list[str]) -> tuple[list[str]]:
        return ([*given, *flags] if "--load" in given or not resumed else given,)

    return arguments("vpmoe.pretrain", "_train", change)


def rounded(tensor: Any) -> Any:
    """A tensor through bf16 and back."""
    return tensor.bfloat16().to(tensor.dtype)
