"""The CPU lane: Megatron-core's own `pretrain()` on a machine without a GPU, over gloo.

Megatron 0.19.2 addresses its device as `torch.cuda` throughout. Inside `activate()` those calls
are answered for the CPU; on leaving, torch and Megatron are as they were. Nothing here is active
on a GPU: `activate()` refuses to start where CUDA is available.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from vpmoe.runtime.gpu_libraries import hidden_libraries
from vpmoe.runtime.patches import replaced

# What Megatron cannot do, or does on CUDA only, without a GPU. The user's flags come later and win.
DEFAULT_FLAGS: tuple[str, ...] = (
    "--distributed-backend",
    "gloo",
    "--use-cpu-initialization",
    "--transformer-impl",
    "local",
    "--moe-token-dispatcher-type",
    "allgather",
    "--cuda-graph-impl",
    "none",
    "--no-gradient-accumulation-fusion",
    "--no-persist-layer-norm",
    "--no-masked-softmax-fusion",
    "--no-bias-gelu-fusion",
    "--no-bias-swiglu-fusion",
    "--no-bias-dropout-fusion",
    "--no-rope-fusion",
)


class _NoStream:
    """Stands for `torch.cuda.Stream` and `torch.cuda.Event`: work on a CPU is already in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def __enter__(self) -> _NoStream:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def record(self, *args: Any, **kwargs: Any) -> None:
        """Marks nothing: there is no queue."""

    def synchronize(self) -> None:
        """Waits for nothing."""

    def wait_stream(self, stream: Any) -> None:
        """Waits for nothing."""

    def wait_event(self, event: Any) -> None:
        """Waits for nothing."""

    def record_event(self, event: Any = None) -> _NoStream:
        """Returns an event that has happened."""
        return event if event is not None else _NoStream()

    def query(self) -> bool:
        """Everything submitted has finished."""
        return True

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds between two events: not measured on a CPU."""
        del end
        return 0.0


class _CpuDeviceMode(TorchFunctionMode):
    """Sends `device="cuda"` literals, `.cuda()` and `.to("cuda")` to the CPU.

    `Tensor.type()` keeps naming a CUDA tensor, since Megatron's gradient clipping asserts it.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("device") is not None and _is_cuda(kwargs["device"]):
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.to and any(_is_cuda(a) for a in args[1:]):
            args = (args[0], *(torch.device("cpu") if _is_cuda(a) else a for a in args[1:]))
        result = func(*args, **kwargs)
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return result.replace("torch.", "torch.cuda.", 1)
        return result


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.split(":", 1)[0] == "cuda"


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    del args, kwargs


def _zero(*args: Any, **kwargs: Any) -> int:
    del args, kwargs
    return 0


def _get_rng_state(*args: Any, **kwargs: Any) -> torch.Tensor:
    del args, kwargs
    return torch.get_rng_state()


def _set_rng_state(new_state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    del args, kwargs
    torch.set_rng_state(new_state)


def _manual_seed(seed: int) -> None:
    # Not torch.manual_seed, which seeds every backend and would come back here.
    torch.default_generator.manual_seed(seed)


def _cuda_replacements() -> dict[str, Any]:
    """Names under `torch.cuda` and what stands for them on a CPU."""
    cpu = torch.device("cpu")
    return {
        "Stream": _NoStream,
        "Event": _NoStream,
        "current_device": lambda: cpu,
        "current_stream": lambda *a, **k: _NoStream(),
        "default_stream": lambda *a, **k: _NoStream(),
        "stream": lambda stream: contextlib.nullcontext(),
        # One device a process: Megatron builds its process groups only when there is one.
        "device_count": lambda: 1,
        "get_device_capability": lambda *a, **k: (0, 0),
        "get_device_properties": lambda *a, **k: SimpleNamespace(
            name="cpu", major=0, minor=0, total_memory=0, multi_processor_count=0
        ),
        "set_device": _do_nothing,
        "synchronize": _do_nothing,
        "empty_cache": _do_nothing,
        "reset_peak_memory_stats": _do_nothing,
        "memory_allocated": _zero,
        "max_memory_allocated": _zero,
        "memory_reserved": _zero,
        "max_memory_reserved": _zero,
        "memory_stats": lambda *a, **k: {},
        "manual_seed": _manual_seed,
        "manual_seed_all": _manual_seed,
        "get_rng_state": _get_rng_state,
        "set_rng_state": _set_rng_state,
    }


def _copied(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of its own for each name: torch 2.15's compiler has one rule for each function."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


@contextlib.contextmanager
def _without_dynamo() -> Iterator[None]:
    """Keeps torch from compiling.

    Megatron's `jit_fuser` is torch.compile: on a CPU it needs a C++ compiler and changes results
    with `ATEN_CPU_CAPABILITY`. `--disable-jit-fuser` alone does not stop it.
    """
    import torch._dynamo.config as dynamo

    name = "TORCHDYNAMO_DISABLE"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with dynamo.patch(disable=True):
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def activate() -> Iterator[None]:
    """Maps Megatron onto this CPU for the duration of the context; nested calls change nothing.

    Raises:
        RuntimeError: CUDA is available; the mapping would hide a working GPU.
    """
    if torch.cuda.is_available():
        raise RuntimeError(
            "the CPU lane was asked for on a machine with CUDA; "
            'hide the GPUs first with CUDA_VISIBLE_DEVICES=""'
        )
    if isinstance(torch.cuda.Stream, type) and issubclass(torch.cuda.Stream, _NoStream):
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(hidden_libraries())
        stack.enter_context(_without_dynamo())
        for name, value in _cuda_replacements().items():
            if not isinstance(value, type):
                value = _copied(value)
            stack.enter_context(replaced(torch.cuda, name, value))
            if hasattr(torch.cuda.random, name):
                stack.enter_context(replaced(torch.cuda.random, name, value))
        stack.enter_context(_CpuDeviceMode())

        from vpmoe.megatron.cpu import without_cuda

        stack.enter_context(without_cuda(_get_rng_state, _set_rng_state))
        yield
