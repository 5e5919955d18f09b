"""Known bugs that can be planted in vpMoE's training, and the contexts that plant them.

Each context patches one function for the duration of a run. Declarations import nothing of vpMoE.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from validation.cases.base import Fault

_HERE = "validation.cases.vpmoe.faults"


@contextlib.contextmanager
def _patched(module: str, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Replaces `module.name` (dots in `name` go into classes) by `wrap(original)`, in the lane."""
    import importlib

    from vpmoe.runtime import detect_lane
    from vpmoe.runtime.patches import replaced

    with detect_lane().activate():
        owner: Any = importlib.import_module(module)
        *outer, attribute = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        with replaced(owner, attribute, wrap(getattr(owner, attribute))):
            yield


def attention_scale() -> Any:
    """The dot product is scaled 1 % too large."""

    def wrap(original: Any) -> Any:
        def pattern(self: Any, softmax_scale: float | None) -> Any:
            right = original(self, softmax_scale)
            return dataclasses.replace(right, scale=right.scale * 1.01)

        return pattern

    return _patched("vpmoe.model.attention.core", "CoreAttention._pattern", wrap)


def _window(change: int) -> Any:
    def wrap(original: Any) -> Any:
        def layer_window(*args: Any) -> int | None:
            window = original(*args)
            return None if window is None else window + change

        return layer_window

    return _patched("vpmoe.model.attention.core", "layer_window", wrap)


def window_plus_one() -> Any:
    """Local layers see W + 1 tokens."""
    return _window(1)


def window_minus_one() -> Any:
    """Local layers see W - 1 tokens."""
    return _window(-1)


def gradient_halved() -> Any:
    """Gradients are halved before they are clipped."""

    def wrap(original: Any) -> Any:
        def prepare_grads(self: Any) -> bool:
            found_inf = bool(original(self))
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.mul_(0.5)
            return found_inf

        return prepare_grads

    return _patched("megatron.core.optimizer.optimizer", "FP32Optimizer.prepare_grads", wrap)


def loss_mask_shifted() -> Any:
    """The loss mask is one position late."""

    def wrap(original: Any) -> Any:
        def get_batch(*args: Any, **kwargs: Any) -> Any:
            batch = original(*args, **kwargs)
            if batch.loss_mask is None:
                return batch
            return dataclasses.replace(batch, loss_mask=batch.loss_mask.roll(1, dims=-1))

        return get_batch

    return _patched("vpmoe.data.batch", "get_batch", wrap)


def documents_not_separated() -> Any:
    """Packed documents attend to each other."""

    def wrap(original: Any) -> Any:
        def get_batch(*args: Any, **kwargs: Any) -> Any:
            return dataclasses.replace(original(*args, **kwargs), document_ids=None)

        return get_batch

    return _patched("vpmoe.data.batch", "get_batch", wrap)


def topk_scaling_missing() -> Any:
    """Routing weights are not scaled by 2.5."""

    def wrap(original: Any) -> Any:
        def topk_routing_with_score_function(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **{**kwargs, "scaling_factor": None})

        return topk_routing_with_score_function

    return _patched(
        "megatron.core.transformer.moe.router", "topk_routing_with_score_function", wrap
    )


def clip_disabled() -> Any:
    """Gradients are not clipped."""

    def wrap(original: Any) -> Any:
        del original
        return lambda *args, **kwargs: None

    return _patched("megatron.core.optimizer.optimizer", "clip_grad_by_total_norm_fp32", wrap)


FAULTS = (
    Fault(
        id="attention-scale-1-percent",
        category="attention",
        component="self_attention",
        imitates="a softmax scale that is 1 % off",
        plant=f"{_HERE}:attention_scale",
        case="tiny_moe",
        canary_steps=1,
    ),
    Fault(
        id="window-plus-one",
        category="window",
        component="self_attention",
        imitates="W taken as tokens besides the current one (transformers #39408)",
        plant=f"{_HERE}:window_plus_one",
        case="tiny_moe",
        canary_steps=1,
    ),
    Fault(
        id="window-minus-one",
        category="window",
        component="self_attention",
        imitates="W - 1 converted twice",
        plant=f"{_HERE}:window_minus_one",
        case="tiny_moe",
        canary_steps=1,
    ),
    Fault(
        id="gradient-halved-before-clipping",
        category="gradients",
        component="grad_norm",
        imitates="a gradient divided by the number of ranks twice (torchtitan #800)",
        plant=f"{_HERE}:gradient_halved",
        case="tiny_moe",
        canary_steps=1,
    ),
    Fault(
        id="loss-mask-shifted",
        category="masks",
        component="batch",
        imitates="a label-aligned mask shifted once more",
        plant=f"{_HERE}:loss_mask_shifted",
        case="tiny_moe",
        canary_steps=1,
    ),
    Fault(
        id="documents-not-separated",
        category="packing",
        component="batch",
        imitates="reset_attention_mask that nothing reads",
        plant=f"{_HERE}:documents_not_separated",
        case="tiny_moe",
        canary_steps=1,
    ),
    Fault(
        id="topk-scaling-missing",
        category="experts",
        component="router",
        imitates="moe_router_topk_scaling_factor ignored",
        plant=f"{_HERE}:topk_scaling_missing",
        case="tiny_moe",
        canary_steps=1,
    ),
    Fault(
        id="clipping-disabled",
        category="gradients",
        component="update_rms",
        imitates="gradients that are not clipped",
        plant=f"{_HERE}:clip_disabled",
        case="tiny_moe",
        canary_steps=None,
    ),
)
