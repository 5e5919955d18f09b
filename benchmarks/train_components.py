"""Where a training step's time goes, by component: device time between hooks on the modules.

A hook queues a marker, an empty kernel that a profile shows in its place among the others. What the
kernels between two markers took is then known whatever the host did meanwhile.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_MARKER = "spin_kernel"

# In the order of a step; what is left of it is "other".
COMPONENTS = (
    "data",
    "attention, local",
    "attention, global",
    "router",
    "permutation",
    "routed experts",
    "shared expert",
    "dense FFN",
    "norms and residuals",
    "LM head and loss",
    "optimizer",
    "other",
)


class Components:
    """Times steps' components while attached; hooks cost host time, so not in timed steps.

    A module's time lasts from its forward pre-hook to its forward hook, and from the gradient of
    its output to that of its input. Permutation is what the MoE layer does besides its parts; norms
    and residuals are what the layers do besides attention and feed-forward.
    """

    def __init__(self) -> None:
        self._marks: dict[str, list[int]] = defaultdict(list)
        self._clock: list[float] = []
        self._handles: list[Any] = []
        self._profiler: Any = None

    def attach(self, model: Any) -> None:
        """Hangs hooks on a chunk's decoder, which must be whole, final norm included."""
        if torch.cuda.is_available() and self._profiler is None:
            self._profiler = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CUDA]
            )
            self._profiler.start()
        from megatron.core.transformer.utils import is_layer_window_attention

        decoder = model.decoder
        config = model.config
        for layer in decoder.layers:
            local = is_layer_window_attention(
                config.window_size, config.window_attn_skip_freq, layer.layer_number
            )
            self._watch(layer.self_attention, f"attention, {'local' if local else 'global'}")
            if not hasattr(layer.mlp, "router"):
                self._watch(layer.mlp, "dense FFN")
                continue
            self._watch(layer.mlp, "MoE")
            self._watch(layer.mlp.router, "router")
            self._watch(layer.mlp.experts, "routed experts")
            if layer.mlp.shared_experts is not None:
                self._watch(layer.mlp.shared_experts, "shared expert")
        first, last = decoder.layers[0].input_layernorm, decoder.final_layernorm
        self._handles += [
            decoder.register_forward_pre_hook(lambda *_: self.mark("layers")),
            last.register_forward_pre_hook(lambda *_: self.mark("layers")),
            last.register_forward_hook(lambda *_: self.mark("LM head and loss")),
            last.register_full_backward_pre_hook(lambda *_: self.mark("LM head and loss")),
            last.register_full_backward_hook(lambda *_: self.mark("layers")),
            first.register_full_backward_hook(lambda *_: self.mark("layers")),
        ]

    def _watch(self, module: torch.nn.Module, name: str) -> None:
        def mark(*_: Any) -> None:
            self.mark(name)

        self._handles += [
            module.register_forward_pre_hook(mark),
            module.register_forward_hook(mark),
            module.register_full_backward_pre_hook(mark),
            module.register_full_backward_hook(mark),
        ]

    def mark(self, name: str) -> None:
        """Begins or ends a component's time, in turns."""
        if not self._handles:
            return
        self._marks[name].append(len(self._clock))
        self._clock.append(time.perf_counter())
        if self._profiler is not None:
            torch.cuda._sleep(1)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Counts what is inside."""
        self.mark(name)
        yield
        self.mark(name)

    def take(self, seconds: float, steps: int) -> dict[str, float]:
        """Takes the hooks off; seconds of a step by component. The device must be idle.

        Args:
            seconds: of all steps by the host's clock; on a device, its kernels' time counts.
            steps: how many there were.
        """
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        clock = self._clock
        if self._profiler is not None:
            self._profiler.stop()
            clock, seconds = _device_clock(self._profiler.events())
            self._profiler = None
        totals = dict.fromkeys(COMPONENTS, 0.0)
        for name, marks in self._marks.items():
            pairs = zip(marks[::2], marks[1::2], strict=True)
            totals[name] = sum(clock[end] - clock[begin] for begin, end in pairs) / steps
        self._marks.clear()
        self._clock = []
        moe, layers = totals.pop("MoE", 0.0), totals.pop("layers", 0.0)
        parts = ("router", "routed experts", "shared expert")
        totals["permutation"] = moe - sum(totals[part] for part in parts)
        blocks = ("attention, local", "attention, global", "dense FFN")
        totals["norms and residuals"] = layers - moe - sum(totals[block] for block in blocks)
        known = sum(totals[component] for component in COMPONENTS if component != "other")
        totals["other"] = seconds / steps - known
        return {name: totals[name] for name in COMPONENTS}


def _device_clock(events: Any) -> tuple[list[float], float]:
    """Seconds that kernels had taken by each marker, and in all."""
    kernels = sorted(
        (event.time_range.start, event.name, event.time_range.elapsed_us() / 1e6)
        for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    clock, total = [], 0.0
    for _, name, seconds in kernels:
        if _MARKER in name:
            clock.append(total)
        else:
            total += seconds
    return clock, total
