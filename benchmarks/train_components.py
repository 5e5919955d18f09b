"""Where a training step's time goes, by component: device time between hooks on the modules."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

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
    """Times a step's components while attached; hooks cost host time, so not in timed steps.

    A module's time lasts from its forward pre-hook to its forward hook, and from the gradient of
    its output to that of its input. Permutation is what the MoE layer does besides its parts; norms
    and residuals are what the layers do besides attention and feed-forward.
    """

    def __init__(self) -> None:
        self._marks: dict[str, list[Any]] = defaultdict(list)
        self._handles: list[Any] = []

    def attach(self, model: Any) -> None:
        """Hangs hooks on a chunk's decoder, which must be whole, final norm included."""
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
        if self._handles:
            self._marks[name].append(_now())

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Counts what is inside."""
        self.mark(name)
        yield
        self.mark(name)

    def take(self, step_seconds: float, steps: int) -> dict[str, float]:
        """Takes the hooks off; seconds of a step by component. The device must be idle."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        totals = dict.fromkeys(COMPONENTS, 0.0)
        for name, marks in self._marks.items():
            totals[name] = sum(map(_seconds, marks[::2], marks[1::2])) / steps
        self._marks.clear()
        moe, layers = totals.pop("MoE", 0.0), totals.pop("layers", 0.0)
        parts = ("router", "routed experts", "shared expert")
        totals["permutation"] = moe - sum(totals[part] for part in parts)
        blocks = ("attention, local", "attention, global", "dense FFN")
        totals["norms and residuals"] = layers - moe - sum(totals[block] for block in blocks)
        totals["other"] = step_seconds - sum(totals[c] for c in COMPONENTS if c != "other")
        return {name: totals[name] for name in COMPONENTS}


def _now() -> Any:
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return float(end - start)
    return float(start.elapsed_time(end)) / 1e3
