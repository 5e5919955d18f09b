"""Bugs in the loss, in gradients and in their reduction over ranks."""

from __future__ import annotations

from typing import Any

from validation.cases.vpmoe.faults.planting import Planted, fault, patched, result

_OPTIMIZER = "megatron.core.optimizer.optimizer"


@fault("loss-divided-twice", "loss", "model", "a mean of a mean (nanoGPT-style accumulation)")
def loss_divided_twice() -> Planted:
    """The loss is halved, as if divided by the micro-batches once more."""

    def change(found: Any) -> Any:
        loss, *rest = found
        return (loss * 0.5, *rest)

    return result("vpmoe.data.loss", "span_loss", change)


@fault(
    "gradient-halved-before-clipping",
    "gradients",
    "grad",
    "a gradient divided by the number of ranks twice (torchtitan #800)",
)
def gradient_halved() -> Planted:
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

    return patched(_OPTIMIZER, "FP32Optimizer.prepare_grads", wrap)


@fault("clipping-disabled", "gradients", "", "gradients that are not clipped")
def clipping_disabled() -> Planted:
    """Gradients are not clipped."""
    return patched(
        _OPTIMIZER,
        "clip_grad_by_total_norm_fp32",
        lambda original: lambda *args, **kwargs: None,
    )


@fault(
    "data-parallel-reduction-missing",
    "parallel",
    "grad",
    "ranks that step on their own gradients",
    case="layout_dp",
    canary=False,
)
def data_parallel_reduction_missing() -> Planted:
    """Gradients are not averaged over data-parallel ranks."""
    return patched(
        "megatron.core.distributed.distributed_data_parallel",
        "DistributedDataParallel.finish_grad_sync",
        lambda original: lambda *args, **kwargs: None,
    )


@fault(
    "phi-reduction-missing",
    "parallel",
    "grapem",
    "a replicated weight whose gradient is not summed over tensor-parallel ranks",
    case="layout_tp",
    canary=False,
)
def phi_reduction_missing() -> Planted:
    """phi's gradient stays each rank's own."""
    return patched(
        "vpmoe.model.grape",
        "copy_to_tensor_model_parallel_region",
        lambda original: lambda tensor, group: tensor,
    )
