"""Bugs in the alternatives: other ways to compute the same, and models that differ in one thing."""

from __future__ import annotations

from typing import Any

from vpmoe.cases.faults.planting import (
    Planted,
    after,
    arguments,
    fault,
    patched,
    result,
)
from vpmoe.megatron import points

_LOSS = "vpmoe.model.cross_entropy"


@fault(
    "chunk-border-token-dropped",
    "alternatives",
    "chunked_loss",
    "a slice that ends one token early",
    case="alternatives",
    steps=None,
    canary=False,
)
def chunk_border_token_dropped() -> Planted:
    """The last token of each chunk of the loss gets no gradient."""

    def wrap(original: Any) -> Any:
        def accumulate(gradients: Any, d_logits: Any, *rest: Any) -> None:
            d_logits[-1] = 0.0
            original(gradients, d_logits, *rest)

        return accumulate

    return patched(_LOSS, "_accumulate_gradients", wrap)


@fault(
    "chunks-overwrite-the-weight-gradient",
    "alternatives",
    "chunked_loss",
    "a gradient that is set where it should be added to",
    case="alternatives",
    steps=None,
    canary=False,
)
def chunks_overwrite() -> Planted:
    """The output matrix learns from the last chunk alone."""

    def wrap(original: Any) -> Any:
        def accumulate(gradients: Any, d_logits: Any, hidden: Any, weight: Any, chunk: Any) -> None:
            gradients[1].zero_()
            original(gradients, d_logits, hidden, weight, chunk)

        return accumulate

    return patched(_LOSS, "_accumulate_gradients", wrap)


@fault(
    "chunked-loss-ignores-what-follows",
    "alternatives",
    "chunked_loss",
    "a fused loss that ignores the gradient that reaches it "
    "(https://github.com/linkedin/Liger-Kernel/issues/968)",
    case="alternatives",
    steps=None,
    canary=False,
)
def chunked_loss_ignores_what_follows() -> Planted:
    """Gradients are those of the loss's weights, whatever its result is multiplied with."""
    return result(_LOSS, "_common_factor", lambda factor: factor / factor)


@fault(
    "chunked-softmax-over-a-slice",
    "alternatives",
    "chunked",
    "a softmax over this rank's vocabulary",
    case="alternatives_of_two",
    steps=None,
    canary=False,
)
def chunked_softmax_over_a_slice() -> Planted:
    """Each rank of a vocabulary normalises over its own part."""
    return patched(_LOSS, "get_pg_size", lambda original: lambda group: 1)


@fault(
    "grouped-experts-off-by-one-row",
    "alternatives",
    "grouped_experts",
    "borders of groups that are off by one",
    case="alternatives",
    steps=None,
    canary=False,
)
def grouped_experts_off_by_one() -> Planted:
    """The last token of each expert goes to the next one."""

    def change(x: Any, weight: Any, ends: Any) -> tuple[Any, ...]:
        moved = ends.clone()
        moved[:-1] = (moved[:-1] - 1).clamp(min=0)
        return x, weight, moved

    return arguments("vpmoe.model.experts", "grouped_linear", change)


@fault(
    "slices-of-the-first-rank",
    "alternatives",
    "experts",
    "every rank starts from the first one's weights",
    case="alternatives_of_two",
    steps=None,
    canary=False,
)
def slices_of_the_first_rank() -> Planted:
    """Sharded weights and experts start as those of rank 0."""
    return patched("vpmoe.model.initialization", "get_pg_rank", lambda original: lambda group: 0)


@fault(
    "whole-experts-cut",
    "alternatives",
    "tensor_whole_experts",
    "the tensor-parallel group in the place of the experts' own",
    case="alternatives_of_two",
    steps=None,
    canary=False,
)
def whole_experts_cut() -> Planted:
    """Experts that are whole on each rank start as slices of twice their size."""

    def change(
        name: Any, matrix: Any, parameter: Any, method: Any, seed: Any, group: Any
    ) -> tuple[Any, ...]:
        if "local_experts" in name:
            from megatron.core import parallel_state

            group = parallel_state.get_tensor_model_parallel_group()
        return name, matrix, parameter, method, seed, group

    return arguments("vpmoe.model.initialization", "_draw", change)


@fault(
    "recompute-draws-anew",
    "alternatives",
    "recompute_dropout",
    "recomputation under another random state (https://github.com/pytorch/pytorch/pull/14253)",
    case="alternatives",
    steps=None,
    canary=False,
)
def recompute_draws_anew() -> Planted:
    """The random state of the forward pass is not restored for its recomputation."""
    return patched(
        *points.RESTORE_RANDOM.place,
        lambda original: lambda *states: None,
    )


@fault(
    "recompute-skips-a-norm",
    "alternatives",
    "recompute",
    "a recomputation that is not the forward pass",
    case="alternatives",
    steps=None,
    canary=False,
)
def recompute_skips_a_norm() -> Planted:
    """RMSNorm only scales when a layer is computed for the second time."""

    def wrap(original: Any) -> Any:
        import torch

        def forward(self: Any, x: Any) -> Any:
            if not torch.is_grad_enabled():
                self.computed = getattr(self, "computed", 0) + 1
            elif getattr(self, "computed", 0):
                self.computed -= 1
                return x * self.weight
            return original(self, x)

        return forward

    return patched("vpmoe.model.norm", "RMSNorm.forward", wrap)


@fault(
    "virtual-chunks-in-reverse",
    "alternatives",
    "pipeline_virtual",
    "chunks of a virtual pipeline in another order than their layers",
    case="alternatives_of_two",
    steps=None,
    canary=False,
)
def virtual_chunks_in_reverse() -> Planted:
    """A rank's first chunk has the kinds of layers of its last."""
    return arguments(
        "vpmoe.model.builder",
        "block_spec",
        lambda config, stage=None: (config, None if stage is None else 1 - stage),
    )


@fault(
    "distributed-orthogonalises-a-slice",
    "alternatives",
    "tensor_distributed",
    "Gram matrices of a slice taken for the whole matrix's",
    case="alternatives_of_two",
    steps=None,
    canary=False,
)
def distributed_orthogonalises_a_slice() -> Planted:
    """Partial Gram matrices are not summed over the ranks that share a matrix."""
    return arguments(
        "vpmoe.optimizer.polar_express",
        "iterate",
        lambda x, coefficients, transposed, reduce=None: (x, coefficients, transposed),
    )


@fault(
    "per-token-loss-divided-by-another-count",
    "alternatives",
    "per_token_loss",
    "a loss divided by another number of tokens than it is summed over "
    "(https://github.com/huggingface/transformers/issues/37766)",
    case="alternatives",
    steps=None,
    canary=False,
)
def per_token_loss_divided_wrongly() -> Planted:
    """With --calculate-per-token-loss a micro-batch reports three quarters of its tokens."""

    def change(found: Any) -> Any:
        from megatron.training import get_args

        loss, tokens, report = found
        if get_args().calculate_per_token_loss:
            tokens = tokens * 3 // 4
        return loss, tokens, report

    return result("vpmoe.data.loss", "span_loss", change)


@fault(
    "frequencies-of-the-neighbour",
    "alternatives",
    "frequencies",
    "heads rotated by another group's frequencies",
    case="alternatives_of_two",
    steps=None,
    canary=False,
)
def frequencies_of_the_neighbour() -> Planted:
    """Each KV group rotates by the next one's frequencies."""
    return result("vpmoe.model.grape", "rotation_angles", lambda angles: angles.roll(1, dims=2))


@fault(
    "frequencies-shared",
    "alternatives",
    "frequencies",
    "one set of frequencies where each group has its own",
    case="alternatives_of_two",
    steps=None,
    canary=False,
)
def frequencies_shared() -> Planted:
    """All KV groups rotate by the first one's frequencies."""
    return result(
        "vpmoe.model.grape",
        "rotation_angles",
        lambda angles: angles[:, :, :1].expand_as(angles),
    )


@fault(
    "frozen-frequencies-learn",
    "alternatives",
    "grapem",
    "a flag that freezes nothing",
    case="alternatives",
    steps=None,
    canary=False,
)
def frozen_frequencies_learn() -> Planted:
    """--no-grapem-learnable-freq leaves phi a parameter with a gradient."""

    def act(module: Any, *_: Any) -> None:
        module.phi.requires_grad_(True)

    return after("vpmoe.model.grape", "GrapeM.__init__", act)


@fault(
    "z-loss-ignored",
    "alternatives",
    "z_loss",
    "a coefficient that nothing reads",
    case="alternative_models",
    steps=None,
    canary=False,
)
def z_loss_ignored() -> Planted:
    """The router's z-loss is not added."""
    return patched(
        *points.Z_LOSS.place,
        lambda original: lambda self, logits, padding_mask=None: logits,
    )


@fault(
    "off-by-one-softmax-without-its-one",
    "alternatives",
    "softmax_off_by_one",
    "an alternative that falls back to the plain one",
    case="alternative_models",
    steps=None,
    canary=False,
)
def off_by_one_without_its_one() -> Planted:
    """--softmax-type off-by-one has no further column."""

    def act(core: Any) -> None:
        if core.config.softmax_type == "off-by-one":
            core.softmax_offset = None

    return after("vpmoe.model.attention.core", "CoreAttention._init_offset", act)


@fault(
    "safety-factor-ignored",
    "alternatives",
    "safety_factor",
    "a flag that reaches one of the two places that read it",
    case="alternative_models",
    steps=None,
    canary=False,
)
def safety_factor_ignored() -> Planted:
    """Matrices are normalised with the default factor, whatever the polynomials are for."""
    return arguments(
        "vpmoe.optimizer.polar_express",
        "_normalise",
        lambda x, safety_factor, reduce: (x, 2e-2, reduce),
    )


@fault(
    "coefficients-file-ignored",
    "alternatives",
    "newton_schulz",
    "a file that is checked and not used",
    case="alternative_models",
    steps=None,
    canary=False,
)
def coefficients_file_ignored() -> Planted:
    """--polar-express-coeffs-path changes nothing."""

    def wrap(original: Any) -> Any:
        def load(path: Any) -> Any:
            from vpmoe.optimizer.polar_express import polar_express_coefficients

            original(path)
            return polar_express_coefficients()

        return load

    return patched("vpmoe.optimizer.megatron", "load_coefficients", wrap)


@fault(
    "second-moment-keeps-the-default-decay",
    "alternatives",
    "normuon_no_memory",
    "a falsy flag that becomes the default: `beta2 or 0.95`",
    case="alternative_models",
    steps=None,
    canary=False,
)
def second_moment_keeps_the_default() -> Planted:
    """--normuon-beta2 0 is taken for none given."""

    def wrap(original: Any) -> Any:
        def build(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **{**kwargs, "beta2": kwargs["beta2"] or 0.95})

        return build

    return patched("vpmoe.optimizer.megatron", "NorMuon", wrap)
