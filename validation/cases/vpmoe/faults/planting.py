"""How a bug is declared and planted: a function that patches one name for the length of a run.

    @fault("window-plus-one", "window", "self_attention", "W taken as tokens besides the current")
    def window_plus_one() -> Planted:
        return patched("vpmoe.model.attention.core", "layer_window", wrap)

Nothing of vpMoE is imported before a bug is planted.
"""

from __future__ import annotations

import contextlib
import importlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from validation.cases.base import Fault

Planted = AbstractContextManager[Any]

_declared: defaultdict[str, list[Fault]] = defaultdict(list)


def fault(
    name: str,
    category: str,
    component: str,
    imitates: str,
    *,
    case: str = "tiny_moe",
    steps: int = 1,
    canary: bool = True,
) -> Callable[[Callable[[], Planted]], Callable[[], Planted]]:
    """Declares the function below as a bug.

    Args:
        name: id of the fault.
        category: such as `window`.
        component: module or metric that it should be traced to.
        imitates: what it is like.
        case: the cheapest case that shows it.
        steps: training steps after which it shows.
        canary: fit for the bug that every check plants, which must be cheap.
    """

    def declare(plant: Callable[[], Planted]) -> Callable[[], Planted]:
        _declared[plant.__module__].append(
            Fault(
                id=name,
                category=category,
                component=component,
                imitates=imitates,
                plant=f"{plant.__module__}:{plant.__name__}",
                case=case,
                canary_steps=steps,
                canary=canary,
            )
        )
        return plant

    return declare


def declared(module: str) -> list[Fault]:
    """The faults of a module, in its order."""
    return list(_declared[module])


@contextlib.contextmanager
def patched(module: str, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Replaces `module.name` (dots in `name` go into classes) by `wrap(original)`, in the lane."""
    from vpmoe.runtime import detect_lane
    from vpmoe.runtime.patches import replaced

    with detect_lane().activate():
        owner: Any = importlib.import_module(module)
        *outer, attribute = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        with replaced(owner, attribute, wrap(getattr(owner, attribute))):
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
