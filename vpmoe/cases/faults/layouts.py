"""Bugs of how parallelisms meet: on four ranks, and where a checkpoint changes its layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vpmoe.cases.faults.planting import (
    Planted,
    after,
    fault,
    patched,
    skipped,
)
from vpmoe.cases.faults.resume import after_loading, clear_expert_bias, states_of
from vpmoe.megatron import points


def _groups() -> Any:
    from megatron.core import parallel_state

    return parallel_state


def _routed(ddp: Any) -> Iterator[Any]:
    """The routed experts' parameters of a model chunk."""
    for parameter in ddp.parameters():
        if not getattr(parameter, "allreduce", True):
            yield parameter


def _all_reduce(tensor: Any, group: Any) -> None:
    import torch

    torch.distributed.all_reduce(tensor, group=group)


def _unless(point: points.Point, wrong: Callable[[], bool]) -> Planted:
    """Lets a reduction be left out on the ranks where `wrong()`."""

    def wrap(original: Any) -> Any:
        def reduce(*args: Any, **kwargs: Any) -> Any:
            return None if wrong() else original(*args, **kwargs)

        return reduce

    return patched(*point.place, wrap)


def _on_last_stage() -> bool:
    groups = _groups()
    last = groups.get_pipeline_model_parallel_world_size() - 1
    return bool(groups.get_pipeline_model_parallel_rank() == last)


# --- four ranks -------------------------------------------------------------------------------


@fault(
    "clip-norm-without-experts",
    "layouts",
    "grad_norm",
    "a norm over the ranks that share whole layers alone, which have no experts' gradients",
    case="layout_tp_ep",
    canary=False,
)
def clip_norm_without_experts() -> Planted:
    """Experts' gradients are left out of the norm that clips."""

    def wrap(original: Any) -> Any:
        def get_grad_norm_fp32(*args: Any, **kwargs: Any) -> Any:
            group = kwargs.get("grad_stats_parallel_group")
            dense = _groups().get_model_parallel_group()
            found = original(*args, **kwargs)
            return found if group is None or group.size() == dense.size() else 0.0

        return get_grad_norm_fp32

    return patched(*points.GRAD_NORM.place, wrap)


@fault(
    "expert-gradients-reduced-twice",
    "layouts",
    "experts",
    "a reduction of one's own besides Megatron's",
    case="layout_ep_dp",
    canary=False,
)
def expert_gradients_reduced_twice() -> Planted:
    """Experts' gradients are summed over their replicas once more."""

    def act(ddp: Any, *_: Any) -> None:
        for parameter in _routed(ddp):
            _all_reduce(parameter.main_grad, _groups().get_expert_data_parallel_group())

    return after(*points.FINISH_SYNC.place, act)


@fault(
    "stage-gradients-not-reduced",
    "layouts",
    "decoder.layers.2",
    "a stage that leaves the reduction to the first one",
    case="layout_pp_dp",
    canary=False,
)
def stage_gradients_not_reduced() -> Planted:
    """The last stage's replicas keep their own gradients."""
    return _unless(points.FINISH_SYNC, _on_last_stage)


@fault(
    "expert-gradients-over-the-wrong-group",
    "layouts",
    "experts",
    "experts that are reduced with the dense layers' group",
    case="layout_ep_dp",
    canary=False,
)
def expert_gradients_over_the_wrong_group() -> Planted:
    """Experts' gradients are averaged with those of the other ranks' experts."""

    def act(ddp: Any, *_: Any) -> None:
        groups = _groups()
        sizes = groups.get_data_parallel_world_size() / groups.get_expert_data_parallel_world_size()
        for parameter in _routed(ddp):
            _all_reduce(parameter.main_grad, groups.get_data_parallel_group())
            parameter.main_grad.div_(sizes)

    return after(*points.FINISH_SYNC.place, act)


@fault(
    "expert-slice-of-a-neighbour",
    "layouts",
    "experts",
    "experts cut by another rank's number",
    case="layout_tp_ep",
    canary=False,
)
def expert_slice_of_a_neighbour() -> Planted:
    """Each rank starts with its tensor-parallel neighbour's part of its experts."""

    def wrap(original: Any) -> Any:
        def draw(name: str, *args: Any) -> None:
            from vpmoe.model import initialization
            from vpmoe.runtime.patches import replaced

            rank = vars(initialization)["get_pg_rank"]

            def other(group: Any) -> int:
                return int((rank(group) + 1) % group.size())

            if "local_experts" not in name:
                return original(name, *args)
            with replaced(initialization, "get_pg_rank", other):
                return original(name, *args)

        return draw

    return patched("vpmoe.model.initialization", "_draw", wrap)


@fault(
    "norms-of-a-stage-not-summed",
    "layouts",
    "norm",
    "replicated weights whose gradients are summed over tensor-parallel ranks on one stage alone "
    "(https://github.com/NVIDIA/Megatron-LM/issues/1446)",
    case="layout_tp_pp",
    canary=False,
)
def norms_of_a_stage_not_summed() -> Planted:
    """The last stage's norms learn from each rank's part of the sequence."""
    return _unless(points.REDUCE_REPLICATED, _on_last_stage)


@fault(
    "norm-gradients-summed-twice",
    "layouts",
    "norm",
    "a mark that two reductions obey",
    case="layout_tp_ep",
    canary=False,
)
def norm_gradients_summed_twice() -> Planted:
    """Gradients of weights that see a part of the sequence are summed twice."""

    def wrap(original: Any) -> Any:
        def reduce(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            original(*args, **kwargs)

        return reduce

    return patched(*points.REDUCE_REPLICATED.place, wrap)


@fault(
    "phi-summed-over-some-stages",
    "layouts",
    "grapem",
    "a reduction that one of the tensor-parallel ranks does not join",
    case="layout_tp_pp",
    canary=False,
)
def phi_summed_over_some_stages() -> Planted:
    """The second tensor-parallel rank's stages learn phi each for itself."""
    return _unless(
        points.REDUCE_OVER_STAGES, lambda: bool(_groups().get_tensor_model_parallel_rank())
    )


@fault(
    "embedding-and-output-as-tied",
    "layouts",
    "embedding",
    "gradients summed as if one weight were both",
    case="layout_pp_dp",
    canary=False,
)
def embedding_and_output_as_tied() -> Planted:
    """First and last stage add up the gradients of the embedding and of the output layer."""

    def act(ddp: Any, *_: Any) -> None:
        for name, parameter in ddp.named_parameters():
            if name.endswith(("word_embeddings.weight", "output_layer.weight")):
                _all_reduce(parameter.main_grad, _groups().get_embedding_group())

    return after(*points.FINISH_SYNC.place, act)


@fault(
    "experts-divided-by-all-replicas",
    "layouts",
    "experts",
    "a mean over the dense layers' replicas, where experts have fewer",
    case="layout_ep_dp",
    canary=False,
)
def experts_divided_by_all_replicas() -> Planted:
    """Experts' gradients are divided by the number of all data-parallel ranks once more."""

    def act(ddp: Any, *_: Any) -> None:
        groups = _groups()
        own = groups.get_expert_data_parallel_world_size()
        for parameter in _routed(ddp):
            parameter.main_grad.mul_(own / groups.get_data_parallel_world_size())

    return after(*points.FINISH_SYNC.place, act)


@fault(
    "expert-bias-of-tensor-ranks",
    "layouts",
    "expert_bias",
    "token counts summed over one of two groups",
    case="layout_tp_ep",
    canary=False,
)
def expert_bias_of_tensor_ranks() -> Planted:
    """Each replica balances its own tokens."""

    def wrap(original: Any) -> Any:
        def update(tokens: Any, bias: Any, rate: float, **_: Any) -> Any:
            group = _groups().get_tensor_model_parallel_group()
            return original(tokens, bias, rate, tp_dp_cp_group=group)

        return update

    return patched(*points.UPDATE_EXPERT_BIAS.place, wrap)


@fault(
    "loss-of-one-replica",
    "layouts",
    "lm_loss",
    "a last stage that reports what one replica has seen",
    case="layout_pp_dp",
    canary=False,
)
def loss_of_one_replica() -> Planted:
    """The loss that is reported is the first replica's."""

    def wrap(original: Any) -> Any:
        def report(total: Any, count: Any) -> Any:
            return original(total, count) * (_groups().get_data_parallel_rank() == 0)

        return report

    return patched("vpmoe.data.loss", "_report", wrap)


@fault(
    "sequence-scattered-off-by-one",
    "layouts",
    "embedding",
    "a part of the sequence that begins a token late",
    case="layout_tp_ep",
    canary=False,
)
def sequence_scattered_off_by_one() -> Planted:
    """Each rank's part of the embedded sequence is a token further on."""

    def wrap(original: Any) -> Any:
        def scatter(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            return original(tensor.roll(-1, dims=0), *args, **kwargs)

        return scatter

    return patched(*points.EMBEDDING_SCATTER.place, wrap)


# --- a checkpoint of another layout -----------------------------------------------------------


@fault(
    "neighbours-expert-loaded",
    "moved",
    "experts",
    "experts that are counted from another rank's first",
    case="moved_ep_tp",
    steps=None,
    canary=False,
)
def neighbours_expert_loaded() -> Planted:
    """The experts of a rank are loaded in each other's place."""

    def act(model: Any, optimizer: Any) -> None:
        del optimizer
        for chunk in model:
            found = [
                (name, parameter)
                for name, parameter in chunk.named_parameters()
                if "layers.1." in name and "local_experts" in name and "linear_fc1" in name
            ]
            values = [parameter.detach().clone() for _, parameter in found]
            for (_, parameter), value in zip(found, [*values[1:], *values[:1]], strict=True):
                parameter.data.copy_(value)

    return after_loading(act)


@fault(
    "optimizer-not-moved",
    "moved",
    "optimizer",
    "a loader that starts the optimizer anew at another layout",
    case="moved_pp_dp",
    steps=None,
    canary=False,
)
def optimizer_not_moved() -> Planted:
    """The optimizer's state and step count start at zero at another layout."""

    def act(model: Any, optimizer: Any) -> None:
        del model
        for state in states_of(optimizer):
            for value in state.values():
                value.zero_()
        for part in optimizer.chained_optimizers:
            for group in part.optimizer.param_groups:
                if "step" in group:
                    group["step"] = 0

    return after_loading(act)


@fault(
    "momentum-not-moved",
    "moved",
    "momentum_buffer",
    "a state that only its own layout finds",
    case="moved_dp_tp",
    steps=None,
    canary=False,
)
def momentum_not_moved() -> Planted:
    """NorMuon's momentum starts at zero at another layout."""

    def act(model: Any, optimizer: Any) -> None:
        del model
        for state in states_of(optimizer):
            if "momentum_buffer" in state:
                state["momentum_buffer"].zero_()

    return after_loading(act)


@fault(
    "data-position-not-moved",
    "moved",
    "data",
    "a position that is counted in one layout's replicas",
    case="moved_dp_tp",
    steps=None,
    canary=False,
)
def data_position_not_moved() -> Planted:
    """A training of another layout reads some samples again."""

    def act(model: Any, optimizer: Any) -> None:
        del model, optimizer
        from megatron.training import get_args

        # Of 0 Megatron makes the iterations' number of samples.
        get_args().consumed_train_samples //= 2

    return after_loading(act)


@fault(
    "balancing-bias-not-moved",
    "moved",
    "expert_bias",
    "a buffer that only the rank which saved it finds",
    case="moved_tp_pp",
    steps=None,
    canary=False,
)
def balancing_bias_not_moved() -> Planted:
    """The balancing bias starts at zero at another layout."""
    return after_loading(clear_expert_bias)


@fault(
    "schedule-not-moved",
    "moved",
    "schedule",
    "a schedule that starts anew at another layout",
    case="moved_pp_dp",
    steps=None,
    canary=False,
)
def schedule_not_moved() -> Planted:
    """The learning rate begins again at another layout."""
    return skipped(*points.LOAD_SCHEDULE.place)


@fault(
    "random-states-not-moved",
    "moved",
    "random",
    "states that each rank seeds by its own number",
    case="moved_ep_dp",
    steps=None,
    canary=False,
)
def random_states_not_moved() -> Planted:
    """A training of another layout draws from a seed of each rank."""

    def act(model: Any, optimizer: Any) -> None:
        del model, optimizer
        import torch

        torch.default_generator.manual_seed(1 + torch.distributed.get_rank())

    return after_loading(act)
