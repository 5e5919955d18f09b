"""Measures a device from inside the training process: time, memory, a reference kernel, kernels.

torch is imported when a meter is made, since the package itself must import without it.
"""

from __future__ import annotations

import contextlib
import itertools
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CPU_SIDE, _CPU_COPY = 512, 4 * 2**20
_GPU_SIDE, _GPU_COPY = 4096, 32 * 2**20
_REPEATS = 5


class CpuMeter:
    """Wall-clock time and resident memory of this process."""

    def __init__(self) -> None:
        import torch

        self._torch = torch

    def synchronise(self) -> None:
        """Nothing is queued on a CPU."""

    def reset_peak(self) -> None:
        """Resets the kernel's high-water mark, where it may be written."""
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """The high-water mark of resident memory."""
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def reference(self) -> float:
        """Seconds of a float32 product and a copy, the fastest of some."""
        torch = self._torch
        own = torch.Generator().manual_seed(0)  # the training's numbers stay its own
        matrix = torch.rand((_CPU_SIDE, _CPU_SIDE), generator=own)
        source = torch.rand((_CPU_COPY,), generator=own)
        target = torch.empty_like(source)
        times = []
        for _ in range(_REPEATS):
            began = time.perf_counter()
            torch.mm(matrix, matrix)
            target.copy_(source)
            times.append(time.perf_counter() - began)
        return min(times)

    def mark(self, marks: list[Any]) -> None:
        """Adds the time."""
        marks.append(time.perf_counter())

    def laps(self, marks: list[Any]) -> list[float]:
        """The differences."""
        return [end - start for start, end in itertools.pairwise(marks)]

    @contextlib.contextmanager
    def span(self, spans: list[Any]) -> Iterator[None]:
        """Adds seconds to `spans`."""
        began = time.perf_counter()
        yield
        spans.append(time.perf_counter() - began)

    def seconds(self, spans: list[Any]) -> float:
        """Their sum."""
        return float(sum(spans))

    @contextlib.contextmanager
    def profile(self, operators: dict[str, float]) -> Iterator[None]:
        """Self time of every operator."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            yield
        for event in profiler.key_averages():
            operators[event.key] = event.self_cpu_time_total / 1e6

    def describe(self) -> dict[str, Any]:
        """Nothing beyond the environment."""
        return {"device_uuid": None}


class CudaMeter:
    """The current CUDA device of this process."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._buffers: tuple[Any, ...] = ()

    def synchronise(self) -> None:
        """Waits for every stream."""
        self._torch.cuda.synchronize()

    def reset_peak(self) -> None:
        """Resets the allocator's peak."""
        self._torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        """The allocator's peak of allocated memory, without the reference kernel's."""
        own = sum(buffer.numel() * buffer.element_size() for buffer in self._buffers)
        return int(self._torch.cuda.max_memory_allocated()) - own

    def reference(self) -> float:
        """Seconds of a bf16 product and a copy, the fastest of some."""
        torch = self._torch
        if not self._buffers:
            own = torch.Generator("cuda").manual_seed(0)  # the training's numbers stay its own
            matrix, source = (
                torch.rand(shape, generator=own, device="cuda").to(torch.bfloat16)
                for shape in ((_GPU_SIDE, _GPU_SIDE), (_GPU_COPY,))
            )
            self._buffers = (matrix, torch.empty_like(matrix), source, torch.empty_like(source))
        matrix, product, source, target = self._buffers
        spans: list[Any] = []
        for _ in range(_REPEATS):
            with self.span(spans):
                torch.mm(matrix, matrix, out=product)
                target.copy_(source)
        torch.cuda.synchronize()
        return min(start.elapsed_time(end) for start, end in spans) / 1e3

    def mark(self, marks: list[Any]) -> None:
        """Adds an event."""
        event = self._torch.cuda.Event(enable_timing=True)
        event.record()
        marks.append(event)

    def laps(self, marks: list[Any]) -> list[float]:
        """The differences, on the device's clock."""
        return [start.elapsed_time(end) / 1e3 for start, end in itertools.pairwise(marks)]

    @contextlib.contextmanager
    def span(self, spans: list[Any]) -> Iterator[None]:
        """Adds a pair of events to `spans`: waiting here would cost what is measured."""
        start, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        spans.append((start, end))

    def seconds(self, spans: list[Any]) -> float:
        """Their sum, on the device's clock."""
        return sum(start.elapsed_time(end) for start, end in spans) / 1e3

    @contextlib.contextmanager
    def profile(self, operators: dict[str, float]) -> Iterator[None]:
        """Time of every kernel."""
        from torch._C._autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
            yield
            self.synchronise()
        for event in profiler.key_averages():
            if event.device_type == DeviceType.CUDA:
                operators[event.key] = event.self_device_time_total / 1e6

    def describe(self) -> dict[str, Any]:
        """Which card it is, for NVML."""
        properties = self._torch.cuda.get_device_properties(self._torch.cuda.current_device())
        return {"device_uuid": str(properties.uuid)}
