"""Prints a hash of what every operation of torch's own test database computes: one JSON object.

    python hashes.py native|wide

A process of its own, since instruction sets and BLAS paths are chosen when torch starts. Every
operation is run on torch's samples: as a function, in place, and backwards; the foreach forms and
the optimizers too.
"""

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.testing._internal import common_methods_invocations as database
from torch.utils._pytree import tree_leaves

from validation.arithmetic import arithmetic
from validation.arithmetic.operations import UnknownOperationError

SAMPLES = 3
FOREACH = ("unary", "binary", "pointwise", "reduce", "other")
OPTIMIZERS = ("SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "Adamax", "NAdam", "RAdam", "Muon")
# Memory as it was found; addresses; a choice of the machine's kernels.
NO_VALUES = ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty")
NO_VALUES += ("new_empty_strided", "uninitialized")


def main() -> int:
    """Prints {name: hash, or why there is none}; returns 0."""
    warnings.simplefilter("ignore")
    with arithmetic(sys.argv[1]):
        found = dict(every_result())
    json.dump(found, sys.stdout)
    return 0


def every_result() -> Iterator[tuple[str, str]]:
    """(name of what was run, hash of its results) pairs."""
    lists = [getattr(database, f"foreach_{kind}_op_db") for kind in FOREACH]
    for info in [*database.op_db, *(info for infos in lists for info in infos)]:
        if torch.float32 in info.dtypes and not info.name.endswith(NO_VALUES):
            name = ".".join(filter(None, (info.name, info.variant_test_name)))
            yield from results_of(name, info)
    for name in OPTIMIZERS:
        for foreach in (False, True):
            yield f"optim.{name}.foreach={foreach}", attempt(lambda n=name, f=foreach: steps(n, f))


def results_of(name: str, info: Any) -> Iterator[tuple[str, str]]:
    """What one operation gives on its first samples."""
    samples = iter(info.sample_inputs("cpu", torch.float32, requires_grad=True))
    for number in range(SAMPLES):
        torch.manual_seed(number)
        try:
            sample = next(samples, None)
        except UnknownOperationError as error:  # the sample itself is made of what is refused
            yield f"{name}/{number}", refused(error)
            return
        if sample is None:
            return
        call = (sample.input, *sample.args), sample.kwargs
        yield f"{name}/{number}", attempt(lambda c=call: detached(info, *c))
        if info.inplace_variant is not None:
            yield f"{name}_/{number}", attempt(lambda c=call: in_place(info, *c))
        if not name.startswith("_foreach") and info.supports_autograd:
            yield f"{name}/{number}/grad", attempt(lambda c=call: gradients(info, *c))


def attempt(run: Callable[[], Any]) -> str:
    """The hash of what `run` returns, or the first words of what it raised."""
    torch.manual_seed(7)
    try:
        return hashed(run())
    except UnknownOperationError as error:
        return refused(error)
    except Exception as error:  # whatever a sample is not meant for
        return f"raised {type(error).__name__}"


def refused(error: UnknownOperationError) -> str:
    return f"refused {str(error).split(':')[0]}"


def detached(info: Any, args: Any, kwargs: Any) -> Any:
    with torch.no_grad():
        return info(*args, **kwargs)


def in_place(info: Any, args: Any, kwargs: Any) -> Any:
    first = [t.detach().clone() for t in args[0]] if isinstance(args[0], list) else None
    first = args[0].detach().clone() if first is None else first
    with torch.no_grad():
        info.inplace_variant(first, *args[1:], **kwargs)
    return first


def gradients(info: Any, args: Any, kwargs: Any) -> Any:
    inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    inputs = [t for t in inputs if t.requires_grad]
    outputs = [t for t in tree_leaves(info(*args, **kwargs)) if isinstance(t, torch.Tensor)]
    outputs = [t for t in outputs if t.requires_grad]
    # Of unlike numbers: much of what ones would give cancels.
    seeds = [(torch.arange(t.numel()) % 7 + 1).view(t.shape).to(t.dtype) / 8 for t in outputs]
    return torch.autograd.grad(outputs, inputs, seeds, allow_unused=True)


def steps(name: str, foreach: bool) -> Any:
    """Weights and state after three steps of one of torch's optimizers."""
    weights = [torch.randn(7, 5).requires_grad_() for _ in range(3)]
    options = {} if name == "Muon" else {"foreach": foreach}
    optimizer = getattr(torch.optim, name)(weights, lr=1e-2, weight_decay=0.1, **options)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn(7, 5)
        optimizer.step()
    return weights, [optimizer.state[weight] for weight in weights]


def hashed(value: Any) -> str:
    hasher = hashlib.blake2b(digest_size=8)
    for tensor in tree_leaves(value):
        if isinstance(tensor, torch.Tensor):
            dense = (
                tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
            )
            dense = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
            dense = dense.resolve_neg().contiguous()
            dense = without_rests(dense) if dense.is_floating_point() else dense
            hasher.update(f"{dense.dtype}{tuple(dense.shape)}".encode())
            hasher.update(dense.flatten().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def without_rests(values: torch.Tensor) -> torch.Tensor:
    """fp32 values without what no machine promises.

    That is the bits of a NaN, the last places of fp64 results, and what is left of numbers that
    cancel: 1e-17 where the sum is zero is nothing but fp64's own rounding.
    """
    values = values.nan_to_num(nan=7.0)
    values = values.float() if values.dtype == torch.float64 else values
    largest = values.abs().max() if values.numel() else 0.0
    return torch.where(values.abs() < largest * 2.0**-45, torch.zeros_like(values), values)


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_TESTING_DEVICE_ONLY_FOR", "cpu")
    sys.exit(main())
