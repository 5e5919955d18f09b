"""Bugs of precision: fewer bits where fp32 is promised."""

from __future__ import annotations

from typing import Any

from vpmoe.cases.faults.planting import (
    Planted,
    arguments,
    fault,
    patched,
    result,
    rounded,
)
from vpmoe.megatron import points


@fault("attention-in-bf16", "numerics", "core_attention", "a kernel that rounds its inputs")
def attention_in_bf16() -> Planted:
    """Queries and keys are rounded to bf16 before the dot product."""

    def change(query: Any, key: Any, *rest: Any) -> tuple[Any, ...]:
        return (rounded(query), rounded(key), *rest)

    return arguments("vpmoe.model.attention.backends", "eager_attention", change)


@fault("norm-in-bf16", "numerics", "layernorm", "statistics of a rounded residual")
def norm_in_bf16() -> Planted:
    """RMSNorms normalise bf16."""
    return arguments("vpmoe.model.norm", "RMSNorm.forward", lambda self, x: (self, rounded(x)))


@fault("linear-in-tf32", "numerics", "decoder", "allow_tf32 left on")
def linear_in_tf32() -> Planted:
    """Linear layers keep ten bits of their inputs' mantissa."""

    def wrap(original: Any) -> Any:
        def forward(self: Any, input_: Any, *args: Any, **kwargs: Any) -> Any:
            import torch

            bits = (input_.detach().view(torch.int32) + 0x1000) & ~0x1FFF
            kept = bits.view(torch.float32)
            return original(self, input_ + (kept - input_).detach(), *args, **kwargs)

        return forward

    return patched(*points.COLUMN_LINEAR.place, wrap)


@fault("logits-in-bf16", "numerics", "model", "an LM head in the model's dtype")
def logits_in_bf16() -> Planted:
    """The loss sees logits rounded to bf16."""
    return arguments(
        *points.MODEL_LOSS.place,
        lambda self, labels, logits: (self, labels, rounded(logits)),
    )


@fault("loss-in-bf16", "numerics", "model", "token losses summed in bf16")
def loss_in_bf16() -> Planted:
    """Cross entropies are rounded to bf16 before they are summed."""
    return arguments(
        "vpmoe.data.loss",
        "span_loss",
        lambda losses, batch, weights: (rounded(losses), batch, weights),
    )


@fault("gradients-accumulated-in-bf16", "numerics", "grad", "--accumulate-allreduce-grads-in-fp32")
def gradients_accumulated_in_bf16() -> Planted:
    """Gradients are rounded to bf16 before they are reduced."""

    def wrap(original: Any) -> Any:
        def finalize_model_grads(model: Any, *args: Any, **kwargs: Any) -> Any:
            for chunk in model:
                for parameter in chunk.parameters():
                    parameter.main_grad.copy_(rounded(parameter.main_grad))
            return original(model, *args, **kwargs)

        return finalize_model_grads

    return patched(*points.FINALIZE_GRADS.place, wrap)


@fault("master-weights-in-bf16", "numerics", "replay", "weights without an fp32 copy")
def master_weights_in_bf16() -> Planted:
    """A step leaves weights that are rounded to bf16."""

    def wrap(original: Any) -> Any:
        def step(self: Any) -> bool:
            done = bool(original(self))
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.data.copy_(rounded(parameter.data))
            return done

        return step

    return patched(*points.STEP_READY.place, wrap)


@fault("polar-express-in-bf16", "numerics", "replay", "Muon's bf16 iterations, without its rescue")
def polar_express_in_bf16() -> Planted:
    """Matrices are rounded to bf16 before and after they are orthogonalised."""

    def wrap(original: Any) -> Any:
        def polar_express(matrices: Any, *args: Any, **kwargs: Any) -> Any:
            return rounded(original(rounded(matrices), *args, **kwargs))

        return polar_express

    return patched("vpmoe.optimizer.normuon", "polar_express", wrap)


@fault("momentum-in-bf16", "numerics", "momentum_buffer", "an optimizer state of two bytes")
def momentum_in_bf16() -> Planted:
    """NorMuon's momentum is stored in bf16."""

    def wrap(original: Any) -> Any:
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            found = original(self, *args, **kwargs)
            for state in self.state.values():
                state["momentum_buffer"].copy_(rounded(state["momentum_buffer"]))
            return found

        return step

    return patched("vpmoe.optimizer.normuon", "NorMuon.step", wrap)


@fault("residual-in-bf16", "numerics", "decoder", "--fp32-residual-connection ignored")
def residual_in_bf16() -> Planted:
    """What attention adds to the residual is rounded to bf16."""

    def change(get: Any) -> Any:
        def add(given: Any, residual: Any, probability: float) -> Any:
            output, bias = given
            return get((rounded(output), bias), residual, probability)

        return add

    return result("vpmoe.model.layer_specs", "get_bias_dropout_add", change)
