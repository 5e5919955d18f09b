"""Bugs of several ranks: reductions that are missing, and slices of another rank."""

from __future__ import annotations

from typing import Any

from vpmoe.cases.faults.planting import (
    Planted,
    after,
    fault,
    patched,
    result,
    skipped,
)
from vpmoe.megatron import points


@fault(
    "data-parallel-reduction-missing",
    "parallel",
    "grad",
    "ranks that step on their own gradients (https://github.com/NVIDIA/Megatron-LM/issues/1685)",
    case="layout_dp",
    canary=False,
)
def data_parallel_reduction_missing() -> Planted:
    """Gradients are not averaged over data-parallel ranks."""
    return skipped(
        *points.FINISH_SYNC.place,
    )


@fault(
    "phi-reduction-missing",
    "parallel",
    "grapem",
    "a replicated weight whose gradient is not summed over tensor-parallel ranks "
    "(https://github.com/NVIDIA/Megatron-LM/issues/7452)",
    case="layout_tp_sp",
    canary=False,
)
def phi_reduction_missing() -> Planted:
    """phi's gradient stays each rank's own."""
    return patched(
        "vpmoe.model.grape",
        "copy_to_tensor_model_parallel_region",
        lambda original: lambda tensor, group: tensor,
    )


@fault(
    "data-parallel-sum-for-mean",
    "parallel",
    "grad",
    "gradients summed over ranks",
    case="layout_dp",
    canary=False,
)
def data_parallel_sum_for_mean() -> Planted:
    """Gradients of data-parallel ranks are added up."""

    def act(ddp: Any, *_: Any) -> None:
        for parameter in ddp.parameters():
            parameter.main_grad.mul_(2.0)

    return after(
        *points.FINISH_SYNC.place,
        act,
    )


@fault(
    "ranks-read-the-same-samples",
    "parallel",
    "batch",
    "a sampler that does not know its rank (https://github.com/vllm-project/speculators/pull/427)",
    case="layout_dp",
    canary=False,
)
def ranks_read_the_same_samples() -> Planted:
    """Every rank trains on the first one's samples."""

    def change(found: Any) -> Any:
        start, end = found
        return 0, end - start

    return result(
        *points.SAMPLES_OF_RANK.place,
        change,
    )


@fault(
    "token-counts-not-reduced",
    "parallel",
    "grad",
    "a loss divided by this rank's tokens",
    case="layout_dp",
    canary=False,
)
def token_counts_not_reduced() -> Planted:
    """The loss is divided by this rank's numbers of tokens."""

    def wrap(original: Any) -> Any:
        def take(iterator: Any) -> Any:
            import dataclasses

            from vpmoe.data.batch import count_spans

            samples = original(iterator)
            own = count_spans([sample for sample, _ in samples])
            return [(s, dataclasses.replace(step, counts=own)) for s, step in samples]

        return take

    return patched("vpmoe.data.batch", "_take_step", wrap)


@fault(
    "norm-gradients-not-reduced",
    "parallel",
    "norm",
    "a sequence-parallel weight whose gradient is each rank's own "
    "(https://github.com/NVIDIA/Megatron-LM/issues/1446)",
    case="layout_tp_sp",
    canary=False,
)
def norm_gradients_not_reduced() -> Planted:
    """Gradients of weights that see a part of the sequence are not summed."""
    return skipped(*points.REDUCE_REPLICATED.place)


@fault(
    "router-gradient-not-reduced",
    "parallel",
    "router",
    "a router without its sequence_parallel mark",
    case="layout_tp_sp",
    canary=False,
)
def router_gradient_not_reduced() -> Planted:
    """Each rank's router learns from its part of the sequence."""

    def act(router: Any, *_: Any) -> None:
        router.weight.sequence_parallel = False

    return after(*points.ROUTER_INIT.place, act)


@fault(
    "tpa-b-reduction-missing",
    "parallel",
    "linear_qkv",
    "replicated factors whose gradients are not summed over tensor-parallel ranks",
    case="layout_tp_sp",
    canary=False,
)
def tpa_b_reduction_missing() -> Planted:
    """Gradients of TPA's B factors stay each rank's own."""
    return patched(
        "vpmoe.model.tpa",
        "copy_to_tensor_model_parallel_region",
        lambda original: lambda tensor, group: tensor,
    )


@fault(
    "norm-of-one-rank",
    "parallel",
    "grad_norm",
    "a gradient norm without the other ranks' parts "
    "(https://github.com/pytorch/torchtitan/issues/596)",
    case="layout_tp",
    canary=False,
)
def norm_of_one_rank() -> Planted:
    """Gradients are clipped by this rank's norm."""

    def wrap(original: Any) -> Any:
        def get_grad_norm_fp32(*args: Any, **kwargs: Any) -> Any:
            from megatron.core import parallel_state

            own = parallel_state.get_data_parallel_group()
            return original(*args, **{**kwargs, "grad_stats_parallel_group": own})

        return get_grad_norm_fp32

    return patched(*points.GRAD_NORM.place, wrap)


@fault(
    "alibi-slopes-of-the-first-rank",
    "parallel",
    "self_attention",
    "slopes that are not sharded with their heads "
    "(https://github.com/bigscience-workshop/Megatron-DeepSpeed/issues/227)",
    case="layout_tp",
    canary=False,
)
def alibi_slopes_of_the_first_rank() -> Planted:
    """Every tensor-parallel rank has the first one's slopes."""
    return patched("vpmoe.model.attention.core", "get_pg_rank", lambda original: lambda group: 0)


@fault(
    "weights-of-another-slice",
    "parallel",
    "weight",
    "shards in the order of another rank",
    case="layout_tp",
    canary=False,
)
def weights_of_another_slice() -> Planted:
    """Each tensor-parallel rank starts with its neighbour's part."""

    def wrap(original: Any) -> Any:
        def get_pg_rank(group: Any) -> int:
            size = 1 if group is None else group.size()
            return int((original(group) + 1) % size)

        return get_pg_rank

    return patched("vpmoe.model.initialization", "get_pg_rank", wrap)


@fault(
    "experts-of-another-rank",
    "parallel",
    "experts",
    "expert-parallel ranks that start alike",
    case="layout_ep",
    canary=False,
)
def experts_of_another_rank() -> Planted:
    """Every expert-parallel rank starts with the first one's experts."""

    def wrap(original: Any) -> Any:
        return lambda name, parameter, first_expert: original(name, parameter, 0)

    return patched("vpmoe.model.initialization", "_matrices", wrap)


@fault(
    "expert-gradients-doubled",
    "parallel",
    "grad",
    "experts' gradients scaled by the ranks that share them",
    case="layout_ep",
    canary=False,
)
def expert_gradients_doubled() -> Planted:
    """Gradients of routed experts are those of two ranks."""

    def act(ddp: Any, *_: Any) -> None:
        for parameter in ddp.parameters():
            if not getattr(parameter, "allreduce", True):
                parameter.main_grad.mul_(2.0)

    return after(
        *points.FINISH_SYNC.place,
        act,
    )


@fault(
    "expert-bias-of-one-rank",
    "parallel",
    "expert_bias",
    "token counts that are not summed over ranks",
    case="layout_dp",
    canary=False,
)
def expert_bias_of_one_rank() -> Planted:
    """Each rank balances its own tokens."""

    def wrap(original: Any) -> Any:
        def update(tokens: Any, bias: Any, rate: float, **_: Any) -> Any:
            import torch

            own = torch.distributed.new_group(
                [torch.distributed.get_rank()], use_local_synchronization=True
            )
            return original(tokens, bias, rate, tp_dp_cp_group=own)

        return update

    return patched(*points.UPDATE_EXPERT_BIAS.place, wrap)


@fault(
    "layers-counted-from-the-stage",
    "parallel",
    "layers",
    "schedules by the number within a pipeline stage",
    case="layout_pp",
    canary=False,
)
def layers_counted_from_the_stage() -> Planted:
    """Each stage's first layer is taken for the model's first."""

    def wrap(original: Any) -> Any:
        def layer_window(config: Any, number: int) -> Any:
            stage = config.num_layers // config.pipeline_model_parallel_size
            return original(config, (number - 1) % stage + 1)

        return layer_window

    return patched("vpmoe.model.attention.core", "layer_window", wrap)


@fault(
    "phi-not-summed-over-stages",
    "parallel",
    "grapem",
    "a weight that every stage holds, and learns for itself",
    case="layout_pp",
    canary=False,
)
def phi_not_summed_over_stages() -> Planted:
    """phi's gradient stays each pipeline stage's own."""
    return skipped(*points.REDUCE_OVER_STAGES.place)


@fault(
    "phi-counted-on-every-stage",
    "parallel",
    "grapem",
    "a shared weight counted twice in the norm "
    "(https://github.com/ROCm/TransformerEngine/pull/715)",
    case="layout_pp",
    canary=False,
)
def phi_counted_on_every_stage() -> Planted:
    """phi counts in the gradient norm once for each stage."""

    def act(grapem: Any, *_: Any) -> None:
        grapem.phi.shared = False

    return after("vpmoe.model.grape", "GrapeM.__init__", act)
