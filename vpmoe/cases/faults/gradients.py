"""Bugs in the loss and in gradients."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

from vpmoe.cases.faults.planting import (
    Planted,
    arguments,
    fault,
    patched,
    result,
    with_flags,
)
from vpmoe.megatron import points


@fault(
    "loss-divided-twice", "loss", "model", "a mean of a mean (nanoGPT-style accumulation)", gpu=True
)
def loss_divided_twice() -> Planted:
    """The loss is halved, as if divided by the micro-batches once more."""

    def change(found: Any) -> Any:
        loss, *rest = found
        return (loss * 0.5, *rest)

    return result("vpmoe.data.loss", "span_loss", change)


def _before_clipping(act: Callable[[Any, Any], Any]) -> Planted:
    """Calls `act(gradient, parameter)` for all of them, after reduction and before clipping."""

    def wrap(original: Any) -> Any:
        def prepare_grads(self: Any) -> bool:
            found_inf = bool(original(self))
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        act(parameter.grad, parameter)
            return found_inf

        return prepare_grads

    return patched(*points.PREPARE_GRADS.place, wrap)


@fault(
    "gradient-halved-before-clipping",
    "gradients",
    "grad",
    "a gradient divided by the number of ranks twice "
    "(https://github.com/pytorch/torchtitan/issues/800)",
)
def gradient_halved() -> Planted:
    """Gradients are halved before they are clipped."""
    return _before_clipping(lambda gradient, parameter: gradient.mul_(0.5))


@fault("clipping-disabled", "gradients", "optimizer", "gradients that are not clipped")
def clipping_disabled() -> Planted:
    """Gradients are not clipped."""
    return patched(
        *points.CLIP.place,
        lambda original: lambda *args, **kwargs: None,
    )


@fault(
    "mean-of-means",
    "loss",
    "model",
    "means of micro-batches averaged (https://github.com/huggingface/transformers/pull/34191)",
)
def mean_of_means() -> Planted:
    """Each micro-batch divides by its own tokens."""

    def change(losses: Any, batch: Any, weights: Any) -> tuple[Any, ...]:
        return (losses, dataclasses.replace(batch, step=None), weights)

    return arguments("vpmoe.data.loss", "span_loss", change)


@fault(
    "span-weights-ignored",
    "loss",
    "grad",
    "flags that nothing reads",
    case="tiny_spans",
)
def span_weights_ignored() -> Planted:
    """Reasoning counts as much as answers."""
    return arguments(
        "vpmoe.data.loss", "span_loss", lambda losses, batch, weights: (losses, batch, (1.0, 1.0))
    )


@fault(
    "span-weights-swapped",
    "loss",
    "grad",
    "weights in another order than spans",
    case="tiny_spans",
)
def span_weights_swapped() -> Planted:
    """Reasoning has the answers' weight."""
    return arguments(
        "vpmoe.data.loss",
        "span_loss",
        lambda losses, batch, weights: (losses, batch, weights[::-1]),
    )


@fault(
    "micro-batch-dropped", "gradients", "grad", "a last micro-batch that is never backpropagated"
)
def micro_batch_dropped() -> Planted:
    """Every other micro-batch has no gradient."""
    calls = itertools.count(1)

    def change(found: Any) -> Any:
        loss, *rest = found
        return (loss * float(next(calls) % 2), *rest)

    return result("vpmoe.data.loss", "span_loss", change)


@fault("gradient-one-step-late", "gradients", "grad", "a buffer read before it is written", steps=2)
def gradient_one_step_late() -> Planted:
    """From the second step on the optimizer steps on the gradient before."""
    kept: dict[int, Any] = {}

    def act(gradient: Any, parameter: Any) -> None:
        now = gradient.clone()
        gradient.copy_(kept.get(id(parameter), now))
        kept[id(parameter)] = now

    return _before_clipping(act)


@fault(
    "gradient-scaled-by-1-percent",
    "gradients",
    "grad",
    "a mean over one token too many, which Adam hides",
)
def gradient_scaled() -> Planted:
    """Gradients are 1 % too small; the optimizer divides it out again."""
    return _before_clipping(lambda gradient, parameter: gradient.mul_(0.99))


@fault("router-gradient-doubled", "gradients", "router", "a gradient reduced twice")
def router_gradient_doubled() -> Planted:
    """Routers' gradients count twice."""

    def act(gradient: Any, parameter: Any) -> None:
        if gradient.shape == (8, 64):  # the tiny routers alone
            gradient.mul_(2.0)

    return _before_clipping(act)


@fault("clipped-before-reduction", "gradients", "grad", "clipping of local gradients")
def clipped_before_reduction() -> Planted:
    """Gradients are clipped to a norm of 1 before they are reduced and clipped again."""

    def wrap(original: Any) -> Any:
        def finalize_model_grads(model: Any, *args: Any, **kwargs: Any) -> Any:
            import torch

            found = [p.main_grad for chunk in model for p in chunk.parameters()]
            norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in found]))
            torch._foreach_mul_(found, float(1.0 / norm.clamp(min=1.0)))
            return original(model, *args, **kwargs)

        return finalize_model_grads

    return patched(*points.FINALIZE_GRADS.place, wrap)


@fault("clipped-at-half-the-norm", "gradients", "optimizer", "another --clip-grad")
def clipped_at_half_the_norm() -> Planted:
    """Gradients are clipped at 0.5."""
    return with_flags("--clip-grad", "0.5")
