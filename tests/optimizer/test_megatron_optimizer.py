"""NorMuon in Megatron's construction: groups, schedules, clipping, bf16, NaN, refusals."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vpmoe.optimizer.arguments import add_optimizer_args, validate_optimizer_args
from vpmoe.runtime import cpu_lane


class Small(torch.nn.Module):
    """A stand-in for a model chunk: one parameter of every kind."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_attention_heads=4, num_query_groups=2, kv_channels=4)
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))

        self.embedding = torch.nn.ParameterDict({"weight": draw(20, 8)})
        self.embedding["weight"].is_embedding_or_output_parameter = True
        self.router = torch.nn.ParameterDict({"weight": draw(4, 8)})
        self.linear_qkv = torch.nn.ParameterDict({"weight": draw(32, 8)})
        self.experts = torch.nn.ParameterDict({"weight1": draw(3, 6, 8)})
        self.norm = torch.nn.ParameterDict({"weight": draw(8)})
        self.scale = draw()

    def set_gradients(self, size: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(1)
        for param in self.parameters():
            param.main_grad = size * torch.randn(param.shape, generator=generator)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def megatron() -> Iterator[None]:
    if torch.cuda.is_available():
        pytest.skip("the CPU lane is for machines without CUDA")
    with cpu_lane.activate():
        from megatron.core import parallel_state

        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        try:
            yield
        finally:
            parallel_state.destroy_model_parallel()
            torch.distributed.destroy_process_group()


@pytest.fixture
def build(megatron: None) -> Callable[..., Any]:
    """Builds the optimizer of a model from flags."""

    def make(
        model: torch.nn.Module, *flags: str, defaults: dict[str, Any] | None = None, **fields: Any
    ) -> Any:
        from megatron.core.optimizer import OptimizerConfig

        from vpmoe.optimizer.megatron import build_optimizer

        config = OptimizerConfig(
            **{"optimizer": "normuon", "lr": 1e-2, "min_lr": 1e-3, "weight_decay": 0.1} | fields
        )
        parser = add_optimizer_args(argparse.ArgumentParser())
        parser.set_defaults(**defaults or {})
        options = parser.parse_args(flags)
        return build_optimizer(config, [model], options)

    return make


def by_name(model: torch.nn.Module, optimizer: Any) -> dict[str, dict[str, Any]]:
    names = {id(param): name for name, param in model.named_parameters()}
    return {
        names[id(param)]: group for group in optimizer.param_groups for param in group["params"]
    }


MATRICES = {"router.weight", "linear_qkv.weight", "experts.weight1"}


@pytest.mark.parametrize("decoupled", [None, 5e-3])
@pytest.mark.parametrize("decoupled_min", [None, 5e-4])
@pytest.mark.parametrize("aux", [None, 3e-3])
@pytest.mark.parametrize("aux_min", [None, 3e-4])
def test_learning_rate_policy_through_the_scheduler(
    build: Callable[..., Any],
    decoupled: float | None,
    decoupled_min: float | None,
    aux: float | None,
    aux_min: float | None,
) -> None:
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    flags = [] if aux is None else ["--normuon-aux-lr", str(aux)]
    flags += [] if aux_min is None else ["--normuon-aux-min-lr", str(aux_min)]
    model = Small()
    optimizer = build(model, *flags, decoupled_lr=decoupled, decoupled_min_lr=decoupled_min)
    scheduler = OptimizerParamScheduler(
        optimizer, 0.0, 1e-2, 1e-3, 10, 110, "cosine", 0.1, 0.1, 0, "constant"
    )

    def rates() -> dict[str, float]:
        return {name: group["lr"] for name, group in by_name(model, optimizer).items()}

    vector, low = aux or 1e-2, aux_min or 1e-3
    highest = {"matrix": 1e-2, "vector": vector, "embedding": decoupled or vector}
    lowest = {"matrix": 1e-3, "vector": low, "embedding": decoupled_min or low}
    for steps, expected in (
        (5, {kind: value / 2 for kind, value in highest.items()}),
        (5, highest),
        (50, {kind: (highest[kind] + lowest[kind]) / 2 for kind in highest}),
        (51, lowest),
    ):
        scheduler.step(steps)
        for name, rate in rates().items():
            kind = "matrix" if name in MATRICES else "vector"
            kind = "embedding" if name == "embedding.weight" else kind
            assert rate == pytest.approx(expected[kind], rel=1e-12), (name, steps)
    decays = {name: group["weight_decay"] for name, group in by_name(model, optimizer).items()}
    assert decays == {name: 0.0 if name in ("norm.weight", "scale") else 0.1 for name in decays}
    # What Megatron logs is the matrices' rate.
    assert next(g for g in optimizer.param_groups if g["default_config"])["max_lr"] == 1e-2


def test_every_parameter_moves_and_matrices_take_normuon(build: Callable[..., Any]) -> None:
    from vpmoe.optimizer import NorMuon

    model = Small()
    optimizer = build(model)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    model.set_gradients()
    assert optimizer.step()[0]
    for name, param in model.named_parameters():
        assert not torch.equal(param, before[name]), name
    normuon = [o.optimizer for o in optimizer.chained_optimizers if type(o.optimizer) is NorMuon]
    assert sum(len(group["params"]) for o in normuon for group in o.param_groups) == len(MATRICES)


def test_clipping_is_over_all_parameters_together(build: Callable[..., Any]) -> None:
    model = Small()
    optimizer = build(model, clip_grad=1.0)
    model.set_gradients()
    expected = norm_of([getattr(p, "main_grad") for p in model.parameters()])  # noqa: B009
    _, norm, _ = optimizer.step()
    assert norm == pytest.approx(expected, rel=1e-6)
    clipped = norm_of([p.grad for p in model.parameters() if p.grad is not None])
    assert clipped == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_non_finite_gradients_is_skipped(
    build: Callable[..., Any], bad: float, clip: float, dtype: torch.dtype
) -> None:
    model = Small(dtype)
    model.register_buffer("expert_bias", torch.zeros(4))
    model.register_buffer("tokens_per_expert", torch.zeros(4), persistent=False)
    optimizer = build(model, clip_grad=clip, bf16=dtype is torch.bfloat16)
    move(model, optimizer)
    assert optimizer.step()[0] is True
    weights = [param.detach().clone() for param in model.parameters()]
    state = [value.clone() for value in tensors(optimizer)]
    move(model, optimizer)
    model.router["weight"].main_grad[0, 0] = bad
    assert optimizer.step()[0] is False
    for param, weight in zip(model.parameters(), weights, strict=True):
        assert torch.equal(param, weight)
    for value, kept in zip(tensors(optimizer), state, strict=True):
        assert torch.equal(value, kept)
    # What Megatron balances the experts with has moved before a gradient is looked at.
    assert model.expert_bias.tolist() == [1.0] * 4
    assert model.tokens_per_expert.tolist() == [2.0] * 4
    move(model, optimizer)
    assert optimizer.step()[0] is True
    assert model.expert_bias.tolist() == [2.0] * 4


def move(model: Small, optimizer: Any) -> None:
    """What a step does before its optimizer's: clears gradients, sets them, moves the buffers."""
    optimizer.zero_grad()
    model.set_gradients()
    for buffer in model.buffers():
        buffer += 1.0


def norm_of(gradients: list[torch.Tensor]) -> float:
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


def tensors(optimizer: Any) -> list[torch.Tensor]:
    return [
        value
        for chained in optimizer.chained_optimizers
        for state in chained.optimizer.state.values()
        for value in state.values()
    ]


def test_bf16_models_step_on_fp32_main_weights(build: Callable[..., Any]) -> None:
    model, plain = Small(torch.bfloat16), Small(torch.bfloat16).float()
    plain.embedding["weight"].is_embedding_or_output_parameter = True
    mixed, full = build(model, bf16=True), build(plain)
    for _ in range(3):
        for optimizer, chunk in ((mixed, model), (full, plain)):
            chunk.set_gradients()
            optimizer.step()
    for half, single in zip(model.parameters(), plain.parameters(), strict=True):
        assert half.main_param.dtype == torch.float32  # type: ignore[attr-defined]
        assert torch.equal(half.main_param, single)  # type: ignore[attr-defined]
        assert torch.equal(half, single.bfloat16())


@pytest.mark.parametrize(
    "words",
    [
        ["--normuon-momentum", "1"],
        ["--normuon-beta2", "-0.5"],
        ["--polar-express-safety-factor", "1"],
        ["--polar-express-coeffs-path", "none.json"],
        ["--normuon-aux-lr", "1e-4"],
    ],
)
def test_values_out_of_range_are_refused(words: list[str]) -> None:
    with pytest.raises(ValueError, match="--normuon|--polar|none.json"):  # noqa: RUF043
        validate_optimizer_args(parsed(*words))


@pytest.mark.parametrize(
    ("device", "ranks", "why"), [(False, 1, "no CUDA device"), (True, 2, "parallel-size 2")]
)
def test_a_graph_of_the_step_is_refused_where_it_cannot_be(
    device: bool, ranks: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device)
    args = parsed()
    args.optimizer_cuda_graph = True
    args.tensor_model_parallel_size = ranks
    with pytest.raises(ValueError, match=f"--optimizer-cuda-graph.*{why}"):
        validate_optimizer_args(args)


def test_only_normuon_is_graphed(build: Callable[..., Any]) -> None:
    """Adam's kernel for graphs rounds the bias correction otherwise, so Adam steps as it does."""
    from vpmoe.optimizer import NorMuon

    plain, graphed = Small(), Small()
    options = {"cuda_graph_warmup_steps": 1000}
    optimizers = [
        build(plain),
        build(graphed, defaults=options, optimizer_cuda_graph=True),
    ]
    for model, optimizer in zip((plain, graphed), optimizers, strict=True):
        for step in range(3):
            model.set_gradients(1.0 + step)
            assert optimizer.step()[0]
    for one, other in zip(plain.parameters(), graphed.parameters(), strict=True):
        assert torch.equal(one, other)
    inner = [wrapped.optimizer for wrapped in optimizers[1].chained_optimizers]
    assert [i._graph_after for i in inner if isinstance(i, NorMuon)] == [1000]
    assert not any(getattr(i, "capturable", False) for i in inner)


def test_flags_without_normuon_are_refused() -> None:
    args = parsed("--normuon-aux-lr", "1")
    args.optimizer = "adam"
    with pytest.raises(ValueError, match="--optimizer normuon"):
        validate_optimizer_args(args)


def parsed(*words: str) -> argparse.Namespace:
    args = add_optimizer_args(argparse.ArgumentParser()).parse_args(words)
    args.optimizer, args.lr, args.min_lr = "normuon", 1e-2, 1e-3
    args.decoupled_lr = args.decoupled_min_lr = None
    args.optimizer_cuda_graph, args.tensor_model_parallel_size = False, 1
    return args
