"""Other seeds than a program asks for, so that a run's inputs are drawn afresh.

Initial weights, batches and dropout come from generators that a program seeds. Here each seed that
it gives becomes another one, which depends on it and on a nonce: the same nonce gives the same
inputs again, another one inputs that no earlier run has seen.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest.mock import patch

# Seeds of NumPy's oldest generator are of 32 bits.
_SEED_BYTES = 4
_NUMPY = ("RandomState", "SeedSequence", "MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
_TORCH_CUDA = ("manual_seed", "manual_seed_all")


@contextlib.contextmanager
def reseeded(nonce: int | None) -> Iterator[None]:
    """Draws afresh what Python, NumPy and torch are seeded for inside of the context.

    A generator that was seeded before, or through a name that a module had imported from NumPy or
    torch before, is left as it is.

    Args:
        nonce: what every seed is mixed with; None leaves seeds alone.
    """
    if nonce is None:
        yield
        return

    def mixed(seed: Any) -> Any:
        """Another seed for this one; what seeds by the machine's entropy stays."""
        if seed is None:
            return None
        content = f"{nonce}:{seed!r}".encode()
        return int.from_bytes(hashlib.blake2b(content, digest_size=_SEED_BYTES).digest(), "little")

    with contextlib.ExitStack() as patches:
        patches.enter_context(patch.object(random, "Random", _seeded(random.Random, mixed)))
        patches.enter_context(patch.object(random, "seed", _first_mixed(random.seed, mixed)))
        for name in ("numpy", "torch"):
            with contextlib.suppress(ImportError):
                library = importlib.import_module(name)
                for owner, attribute, substitute in _SUBSTITUTES[name](library, mixed):
                    patches.enter_context(patch.object(owner, attribute, substitute))
        yield


def _first_mixed(function: Callable[..., Any], mixed: Callable[[Any], Any]) -> Callable[..., Any]:
    """The function with its first argument, or the one called `seed`, mixed."""

    def called(*arguments: Any, **named: Any) -> Any:
        if arguments:
            arguments = (mixed(arguments[0]), *arguments[1:])
        named = {key: mixed(v) if key in ("seed", "a") else v for key, v in named.items()}
        return function(*arguments, **named)

    return called


def _derived(kind: Any, methods: Mapping[str, Any]) -> type:
    """A class like this one, with other methods; instances of `kind` are instances of it, too."""

    class Like(type(kind)):  # type: ignore[misc]
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, kind)

    made: type = Like(kind.__name__, (kind,), dict(methods))
    return made


def _seeded(kind: Any, mixed: Callable[[Any], Any]) -> type:
    """A class like this one, whose instances are made from mixed seeds."""

    def begin(self: Any, *arguments: Any, **named: Any) -> None:
        _first_mixed(functools.partial(kind.__init__, self), mixed)(*arguments, **named)

    return _derived(kind, {"__init__": begin})


def _numpy(numpy: Any, mixed: Callable[[Any], Any]) -> Iterator[tuple[Any, str, Any]]:
    places = numpy.random
    yield places, "seed", _first_mixed(places.seed, mixed)
    sequence = places.SeedSequence

    def default_rng(seed: Any = None) -> Any:
        # What is no number is a generator or a sequence that was mixed when it was made.
        plain = seed is None or isinstance(seed, (sequence, places.BitGenerator, places.Generator))
        return original(seed if plain else mixed(seed))

    original = places.default_rng
    yield places, "default_rng", default_rng
    for name in _NUMPY:
        kind = getattr(places, name)
        yield places, name, _numpy_kind(kind, sequence, mixed)


def _numpy_kind(kind: type, sequence: type, mixed: Callable[[Any], Any]) -> type:
    """A generator's class that mixes a number, and not a sequence, which is mixed already."""

    def once(seed: Any) -> Any:
        return seed if isinstance(seed, sequence) else mixed(seed)

    return _seeded(kind, once)


def _torch(torch: Any, mixed: Callable[[Any], Any]) -> Iterator[tuple[Any, str, Any]]:
    kind = torch.Generator

    def manual_seed(self: Any, seed: int) -> Any:
        return kind.manual_seed(self, mixed(seed))

    yield torch, "Generator", _derived(kind, {"manual_seed": manual_seed})
    seed = _first_mixed(torch.manual_seed, mixed)
    yield torch, "manual_seed", seed
    yield torch.random, "manual_seed", seed
    for name in _TORCH_CUDA:
        yield torch.cuda, name, _first_mixed(getattr(torch.cuda, name), mixed)


_SUBSTITUTES: dict[str, Callable[..., Iterator[tuple[Any, str, Any]]]] = {
    "numpy": _numpy,
    "torch": _torch,
}
