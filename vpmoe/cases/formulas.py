"""The target of the case `formulas`: parts of model and optimizer, without a training.

Values that another way of computing them must give are invariants; what is refused where modules
are built, or called, is recorded as the message.
"""

from __future__ import annotations

import importlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases.presets import preset_flags
from vpmoe.cases.replay import Before, replay

_EPSILON = 2.0**-23
_SEED = 20


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Records parts of the model and of the optimizer.

    Args:
        recorder: of this process.
        settings: `presets` (files whose parameters are counted), `base` (the preset whose model
            refuses), `perturb_seed` (moves the seed of the inputs).
    """
    from vpmoe.runtime import detect_lane

    generator = torch.Generator().manual_seed(_SEED + int(settings.get("perturb_seed") or 0))
    with detect_lane().activate():
        for preset in settings["presets"]:
            _record_parameters(recorder, preset)
        _record_start(recorder)
        _record_model(recorder, settings["base"])
        _record_checkpoint(recorder, settings["base"])
        _record_backends(recorder)
        _record_loss(recorder, generator)
        _record_polar_express(recorder, generator)
        _record_normuon(recorder, generator)


def message_of(act: Callable[[], Any]) -> str:
    """The type and message of what an action is refused with; "" if it is not."""
    try:
        act()
    except (ValueError, RuntimeError, TypeError, NotImplementedError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


# --- parameters -------------------------------------------------------------------------------


def _record_parameters(recorder: Recorder, preset: str) -> None:
    """`vpmoe params`: the table, held to the parameters of the built model, and the routing."""
    from vpmoe.config import load_preset
    from vpmoe.model.meta import meta_model
    from vpmoe.model.params import count_parameters, render
    from vpmoe.optimizer.report import render as render_routes
    from vpmoe.optimizer.report import routing_report

    loaded = load_preset(Path(preset))
    flags = [*loaded.to_flags(), "--expert-kernel", "grouped"]  # a stack is built faster
    table = count_parameters(loaded.fields)
    recorder.discrete(f"parameters/{loaded.name}", render(loaded.name, table), tensor="table")
    routes = render_routes(routing_report(flags))
    recorder.discrete(f"parameters/{loaded.name}", routes.splitlines(), tensor="routes")
    with meta_model(flags) as (_, model):
        built = _by_component(model)
    for component, count in table.components.items():
        recorder.invariant(
            f"parameters/{loaded.name}",
            f"{component}: as many as the built model has",
            float(abs(count - built.pop(component, 0))),
            0.0,
            tensor=component,
        )
    recorder.discrete(f"parameters/{loaded.name}", built, tensor="in no component")


def _by_component(model: torch.nn.Module) -> dict[str, int]:
    """Numbers of a built model's parameters, by the components of the table."""
    found: dict[str, int] = {}
    local = {
        name.removesuffix(".self_attention")
        for name, module in model.named_modules()
        if name.endswith(".self_attention") and module.core_attention.pattern.window is not None
    }
    for name, parameter in model.named_parameters():
        layer = ".".join(name.split(".")[:3])
        found_in = _component(name, layer in local)
        found[found_in] = found.get(found_in, 0) + parameter.numel()
    return found


def _component(name: str, local: bool) -> str:
    if name.startswith(("embedding.", "output_layer.")):
        return "embeddings"
    if name.startswith("grapem."):
        return "grapem"
    if ".self_attention." in name:
        return "local_attention" if local else "global_attention"
    for part in ("shared_experts", "experts"):
        if f".{part}." in name:
            return part
    if ".router." in name:
        return "routers"
    return "norms" if "layernorm" in name else "dense_ffn"


def _record_start(recorder: Recorder) -> None:
    """What stops `vpmoe pretrain` and the optimizer's construction before there is a training."""
    from vpmoe.megatron.repairs import skip_helper_build
    from vpmoe.optimizer.megatron import build_optimizer
    from vpmoe.pretrain import forward_step, main

    recorder.discrete("refused/no preset", main(["--config", "no-such-file.toml"]), tensor="status")
    recorder.discrete(
        "refused/schedule plan", message_of(lambda: forward_step(iter(()), None, True)), tensor=""
    )
    refused = (
        "use_distributed_optimizer",
        "use_layer_wise_distributed_optimizer",
        "optimizer_cpu_offload",
        "use_precision_aware_optimizer",
    )
    with skip_helper_build():
        for name in refused:
            config: Any = SimpleNamespace(**{n: n == name for n in refused})
            said = message_of(lambda config=config: build_optimizer(config, (), None))  # type: ignore[misc,arg-type]
            recorder.discrete(f"refused/{name}", said, tensor="message")


# --- modules ----------------------------------------------------------------------------------


def _record_model(recorder: Recorder, preset: str) -> None:
    """What modules refuse, on a model without memory."""
    from vpmoe.model.meta import meta_model

    with meta_model(preset_flags(preset, ())) as (_, model):
        recorder.discrete(
            "refused/a model inside of another's process group",
            message_of(lambda: meta_model(preset_flags(preset, ())).__enter__()),
            tensor="message",
        )
        for name, act in (*_refused_configurations(model.config), *_refused_calls(model)):
            recorder.discrete(f"refused/{name}", message_of(act), tensor="message")


def _refused_configurations(config: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.enums import AttnMaskType

    from vpmoe.model.attention.core import CoreAttention
    from vpmoe.model.experts import GroupedExperts
    from vpmoe.model.kernels import resolve_kernels
    from vpmoe.model.layer_specs import block_spec, is_moe_layer
    from vpmoe.model.moe.groups import GroupScoreRouter
    from vpmoe.model.moe.layer import local_unsupported_reason
    from vpmoe.model.moe.router import routing_unsupported_reason
    from vpmoe.model.tpa import TensorProductQKV, TPASelfAttention

    groups = ProcessGroupCollection.use_mpu_process_groups()

    def changed(**values: Any) -> Any:
        # Not dataclasses.replace: Megatron's own checks are not what is asked for here.
        found = object.__new__(type(config))
        found.__dict__.update({**config.__dict__, **values})
        return found

    def core(mask: Any = AttnMaskType.causal, **values: Any) -> Callable[[], Any]:
        return lambda: CoreAttention(changed(**values), 1, mask, "self")

    def factors(**values: Any) -> Callable[[], Any]:
        return lambda: TensorProductQKV(
            64, 128, config=changed(**values), init_method=torch.nn.init.zeros_, tp_group=groups.tp
        )

    def grouped(**values: Any) -> Callable[[], Any]:
        return lambda: GroupedExperts(8, changed(**values), groups)

    scaled = CoreAttention(
        changed(apply_query_key_layer_scaling=True), 3, AttnMaskType.causal, "self"
    )
    yield (
        "nothing: scale of layer 3",
        _raising(f"scale of layer 3, scaled by its number: {scaled.pattern.scale}"),
    )
    yield "context parallelism", core(context_parallel_size=2)
    yield "mask", core(AttnMaskType.padding)
    yield "softmax type", core(softmax_type="sharp")
    yield "tpa with a bias", factors(add_bias_linear=True)
    yield (
        "tpa and latent attention",
        lambda: TPASelfAttention(changed(multi_latent_attention=True), None, 1),
    )
    yield "grouped experts with a gate", grouped(gated_linear_unit=True)
    yield "grouped experts with a bias", grouped(add_bias_linear=True)
    yield "grouped experts that weigh inputs", grouped(moe_apply_probs_on_input=True)
    yield (
        "pipeline layout",
        lambda: block_spec(changed(pipeline_model_parallel_layout="Et|tL")),
    )
    yield "schedule of experts", lambda: is_moe_layer(changed(moe_layer_freq=[1, 0]), 1)
    yield (
        "group scores without groups",
        lambda: GroupScoreRouter(changed(moe_router_num_groups=None)),
    )
    yield (
        "chunked loss in fp16",
        lambda: resolve_kernels(changed(loss_kernel="chunked", fp16=True)),
    )
    yield (
        "whole graph of experts that wait",
        lambda: resolve_kernels(changed(cuda_graph_impl="full_iteration")),
    )
    for name, values in {
        "a cpu": {},
        "experts over ranks": {"expert_model_parallel_size": 2},
    }.items():
        reason = local_unsupported_reason(changed(**values))
        yield f"fused experts: {name}", _raising(reason)
    for name, values in {
        "six experts": {"num_moe_experts": 6},
        "softmax": {"moe_router_score_function": "softmax"},
        "bf16": {"moe_router_dtype": "bf16"},
        "global balance": {"moe_router_load_balancing_type": ["aux_loss", "seq_aux_loss"]},
        "capacity": {"moe_expert_capacity_factor": 1.0},
        "z-loss": {"moe_z_loss_coeff": 1e-3},
        "replay": {"moe_enable_routing_replay": True},
        "biases": {"add_bias_linear": True},
        "three groups": {"moe_router_num_groups": 3},
        "nothing": {},
    }.items():
        reason = routing_unsupported_reason(changed(**values))
        yield f"fused routing: {name}", _raising(reason)


def _raising(reason: str | None) -> Callable[[], Any]:
    def act() -> None:
        if reason is not None:
            raise ValueError(reason)

    return act


def _refused_calls(model: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    from megatron.core.transformer.enums import AttnMaskType

    from vpmoe.model.initialization import initialize_weights
    from vpmoe.optimizer import megatron
    from vpmoe.runtime.patches import replaced

    def sharded(name: str, *shape: int, axis: int) -> None:
        parameter: Any = torch.nn.Parameter(torch.zeros(shape))
        parameter.tensor_model_parallel, parameter.partition_dim = True, axis
        with replaced(megatron, "get_pg_size", lambda group: 2):
            megatron.matrix_layout(name, parameter, model.config, model.pg_collection)

    yield "shards of a stack", lambda: sharded("experts.weight1", 2, 4, 4, axis=0)
    yield "shards of half a query group", lambda: sharded("linear_qkv.weight", 32, 64, axis=0)
    layer = model.decoder.layers[0].self_attention
    ids = torch.zeros(1, 8, dtype=torch.int64)
    q = torch.zeros(8, 1, 4, 16)
    k = torch.zeros(8, 1, 2, 16)
    core = layer.core_attention
    whole = {"attention_bias": None, "packed_seq_params": None}
    yield "attention mask", lambda: model(ids, ids, ids)
    yield "packed sequences", lambda: model(ids, ids, packed_seq_params=whole)
    yield "frequencies without positions", lambda: model.grapem(None)
    yield "inference", lambda: layer(q, None, inference_context=whole)
    yield "flash decode", lambda: layer(q, None, rotary_pos_cos=q)
    yield "core: packed sequences", lambda: core(q, k, k, None, packed_seq_params=whole)
    yield "core: bias", lambda: core(q, k, k, None, attention_bias=q)
    yield "core: mask", lambda: core(q, k, k, None, attn_mask_type=AttnMaskType.padding)
    yield "core: document ids of another shape", lambda: core(q, k, k, ids[:, :4].int())
    yield "core: document ids of another type", lambda: core(q, k, k, ids)
    for name, shape in {"vector": (4,), "stack": (2, 4, 4), "four axes": (1, 2, 4, 4)}.items():
        stranger = torch.nn.Module()
        stranger.stranger = torch.nn.Parameter(torch.zeros(shape))
        yield (
            f"initial values of a strange {name}",
            lambda stranger=stranger: initialize_weights(
                stranger, model.config, 1, model.pg_collection
            ),
        )


def _record_checkpoint(recorder: Recorder, preset: str) -> None:
    """Grouped experts are saved as sequential ones are: the same tensors, whole and in part."""
    from vpmoe.model.meta import meta_model

    kinds = {}
    for kernel in ("sequential", "grouped"):
        with meta_model(preset_flags(preset, ["--expert-kernel", kernel])) as (_, model):
            kinds[kernel] = _entries(model.sharded_state_dict())
            if kernel == "grouped":
                _record_grouped(recorder, model)
    recorder.discrete("checkpoint", kinds["grouped"], tensor="entries")
    differ = set(map(str, kinds["sequential"])) ^ set(map(str, kinds["grouped"]))
    recorder.invariant(
        "checkpoint", "grouped experts are saved as sequential ones", float(len(differ)), 0.0
    )


def _record_grouped(recorder: Recorder, model: Any) -> None:
    """Grouped experts take a checkpoint's entries without numbers, and refuse what they can't."""
    experts = model.decoder.layers[1].mlp.experts
    saved = {**experts.state_dict(), "linear_fc1._extra_state0": None}
    found = experts.load_state_dict(saved, assign=True)
    recorder.discrete("checkpoint/experts", list(map(list, found)), tensor="missing, unexpected")
    singletons = {"singleton_local_shards": True, "dp_cp_group": model.pg_collection.dp_cp}
    said = message_of(lambda: experts.sharded_state_dict(metadata=singletons))
    recorder.discrete("refused/single shards of experts", said, tensor="message")
    recorder.discrete("checkpoint/experts", experts.backward_dw(), tensor="delayed gradients")


def _entries(state: Mapping[str, Any]) -> list[Any]:
    """What is saved whole, by key; of experts and layers however they are stacked."""
    found = set()
    for entry in state.values():
        shape = getattr(entry, "global_shape", None)
        if shape is not None and getattr(entry, "data", None) is not None:
            found.add((entry.key, tuple(shape)))
    return [[key, list(shape)] for key, shape in sorted(found)]


def _record_backends(recorder: Recorder) -> None:
    """Which attention backend takes a layer, and why the others don't."""
    from vpmoe.model.attention import backends
    from vpmoe.model.attention.pattern import AttentionPattern
    from vpmoe.runtime.patches import replaced

    plain, slopes = AttentionPattern(0.25), AttentionPattern(0.25, None, (0.5,), True)
    documents = torch.zeros(1, 8, dtype=torch.int32)
    asked = {
        "cpu": (False, torch.float32, 64, plain, None),
        "fp64": (True, torch.float64, 64, plain, None),
        "fp32": (True, torch.float32, 64, plain, None),
        "head of 48": (True, torch.bfloat16, 48, plain, None),
        "head of 512": (True, torch.bfloat16, 512, plain, None),
        "slopes": (True, torch.bfloat16, 48, slopes, None),
        "documents": (True, torch.bfloat16, 48, plain, documents),
    }
    for installed in (True, False):
        with replaced(backends, "_installed", lambda package, found=installed: found):
            for name, (cuda, dtype, channels, pattern, ids) in asked.items():
                query = SimpleNamespace(is_cuda=cuda, dtype=dtype, shape=(8, 1, 4, channels))
                reasons = {
                    backend.name: backend.unsupported_reason(pattern, query, ids)
                    for backend in backends.BACKENDS
                }
                place = name if installed else f"{name}, nothing installed"
                recorder.discrete(f"backends/{place}", reasons, tensor="reasons")
    query = torch.zeros(8, 1, 4, 16)
    for requested in ("triton", "te"):
        recorder.discrete(
            f"backends/{requested}",
            message_of(lambda r=requested: backends.choose_backend(r, plain, query, None)),
            tensor="message",
        )


# --- loss -------------------------------------------------------------------------------------


def _record_loss(recorder: Recorder, generator: torch.Generator) -> None:
    """The chunked loss against torch's, with and without the weights of the losses."""
    from vpmoe.model import cross_entropy
    from vpmoe.runtime.patches import replaced

    hidden = torch.randn(23, 16, generator=generator)
    weight = torch.randn(40, 16, generator=generator)
    labels = torch.randint(40, (23,), generator=generator)
    weights = torch.rand(23, generator=generator)
    weights[3] = 0.0
    expected = _loss_and_gradients(
        lambda h, w: torch.nn.functional.cross_entropy(h @ w.t(), labels, reduction="none"),
        hidden,
        weight,
        0.7 * weights,
    )
    with replaced(cross_entropy, "_CHUNK_BYTES", 5 * 40 * 4):
        for name, given in {"known": weights, "unknown": None, "doubled": 2 * weights}.items():
            found = _loss_and_gradients(
                lambda h, w, g=given: cross_entropy.chunked_cross_entropy(h, w, labels, g),
                hidden,
                weight,
                0.7 * weights,
            )
            for part, one, other in zip(("loss", "hidden", "weight"), found, expected, strict=True):
                recorder.invariant(
                    f"chunked_loss/weights {name}",
                    f"{part} as torch has it",
                    float((one - other).norm() / other.norm()),
                    16 * _EPSILON,
                    tensor=part,
                )
        found = _loss_and_gradients(
            lambda h, w: cross_entropy.chunked_cross_entropy(h, w, labels, weights),
            hidden,
            weight,
            weights.flip(0),
        )
    recorder.discrete(
        "chunked_loss/weights that don't come",
        [bool(part.isnan().all()) for part in found],
        tensor="nan",
    )


def _loss_and_gradients(
    losses: Callable[..., torch.Tensor],
    hidden: torch.Tensor,
    weight: torch.Tensor,
    upstream: torch.Tensor,
) -> list[torch.Tensor]:
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    found = losses(h, w)
    return [found.detach(), *torch.autograd.grad((found * upstream).sum(), (h, w))]


# --- optimizer --------------------------------------------------------------------------------


def _record_polar_express(recorder: Recorder, generator: torch.Generator) -> None:
    """Coefficients by their property, polar factors by their singular values, and refusals."""
    # The package has a function of the module's name.
    module = importlib.import_module("vpmoe.optimizer.polar_express")
    for factor, iterations in ((0.0, 1), (0.02, 5), (0.1, 8), (0.02, 30)):
        found = module.polar_express_coefficients(factor, iterations)
        recorder.tensor(
            step=0,
            micro_batch=0,
            phase="init",
            module=f"polar_express/{factor}, {iterations} times",
            tensor="coefficients",
            value=torch.tensor(found, dtype=torch.float64).float(),
        )
    matrices = torch.randn(2, 12, 5, generator=generator)
    for name, scale in {"tiny": 2.0**-90, "common": 1.0, "huge": 2.0**90}.items():
        polar = module.polar_express(matrices * scale)
        u, _, v = torch.linalg.svd(matrices.double(), full_matrices=False)
        recorder.invariant(
            f"polar_express/{name}",
            "near the polar factor",
            float((polar.double() - u @ v).norm() / (u @ v).norm()),
            0.3,
        )
        recorder.tensor(
            step=0,
            micro_batch=0,
            phase="init",
            module=f"polar_express/{name}",
            tensor="polar",
            value=polar,
        )
    with tempfile.TemporaryDirectory(prefix="golden-coefficients-") as folder:
        for name, text in {
            "no JSON": "[[1, 2, 3]",
            "empty": "[]",
            "a pair": "[[1, 2, 3], [1, 2]]",
            "a text": '[[1, 2, "3"]]',
            "infinite": "[[1, 2, Infinity]]",
            "good": json.dumps([[1, 2, 3], [4.5, 0, -1]]),
        }.items():
            path = Path(folder) / "coefficients.json"
            path.write_text(text, encoding="utf-8")
            said = message_of(lambda path=path: module.load_coefficients(path))
            recorder.discrete(
                f"coefficients/{name}", said.replace(folder, "FOLDER"), tensor="message"
            )
    one = torch.ones(3)
    for name, act in {
        "factor": lambda: module.polar_express_coefficients(1.0),
        "iterations": lambda: module.polar_express_coefficients(0.02, 0),
        "vector": lambda: module.polar_express(one),
        "reduction alone": lambda: module.polar_express(one[None], reduce=lambda t, _: t),
    }.items():
        recorder.discrete(f"refused/polar_express {name}", message_of(act), tensor="message")


def _record_normuon(recorder: Recorder, generator: torch.Generator) -> None:
    """Steps on stacks, blocks and parameters without a gradient, against the formula in fp64."""
    from vpmoe.optimizer import MatrixLayout, NorMuon

    group = {"lr": 0.05, "weight_decay": 0.1}
    weights = {
        "matrix": torch.randn(6, 4, generator=generator),
        "stack": torch.randn(3, 4, 6, generator=generator),
        "blocks": torch.randn(12, 5, generator=generator),
        "idle": torch.randn(4, 4, generator=generator),
    }
    parameters = {name: torch.nn.Parameter(value.clone()) for name, value in weights.items()}
    blocks = (2, 1, 1)  # three groups of four rows

    def layout(parameter: torch.Tensor) -> MatrixLayout:
        return MatrixLayout(block_rows=blocks if parameter is parameters["blocks"] else None)

    def built() -> Any:
        return NorMuon(list(parameters.values()), momentum=0.8, beta2=0.9, layout=layout, **group)

    from vpmoe.optimizer import normuon
    from vpmoe.runtime.patches import replaced

    optimizer = built()
    for step in (1, 2, 3):
        if step == 3:  # as a checkpoint goes on
            saved = optimizer.state_dict()
            optimizer = built()
            optimizer.load_state_dict(saved)
        for name, parameter in parameters.items():
            if name != "idle":
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        before = {
            name: {
                "weight": parameter.detach().clone(),
                **{key: value.clone() for key, value in optimizer.state[parameter].items()},
            }
            for name, parameter in parameters.items()
        }
        with replaced(normuon, "_SMALLEST_CHUNK", 32):  # a stack in several parts
            told = optimizer.step(lambda: 1.25)
        recorder.discrete("normuon/closure", told, tensor="loss", step=step, phase="optimizer")
        idle = parameters["idle"].detach() - before["idle"]["weight"]
        recorder.invariant(
            "normuon/idle",
            "a parameter without a gradient stays",
            float(idle.abs().max()),
            0.0,
            step=step,
            phase="optimizer",
        )
        for name in ("matrix", "stack", "blocks"):
            parameter = parameters[name]
            gradient = parameter.grad
            assert gradient is not None
            parts = _block_rows(parameter, blocks) if name == "blocks" else [slice(None)]
            for number, rows in enumerate(parts):
                state = {key: value[rows] for key, value in before[name].items()}
                replayed = replay(
                    Before(
                        "NorMuon",
                        parameter.detach()[rows],
                        1,
                        state.pop("weight"),
                        gradient[rows],
                        state,
                        {**group, "momentum": 0.8, "beta2": 0.9},
                    )
                )
                recorder.invariant(
                    f"normuon/{name}",
                    "the update is its formula's in fp64",
                    replayed.error,
                    replayed.bound,
                    step=step,
                    phase="optimizer",
                    tensor=f"update{number}",
                )
    _record_refused_normuon(recorder)


def _block_rows(parameter: torch.Tensor, blocks: tuple[int, ...]) -> list[torch.Tensor]:
    """Rows of each block over all groups of blocks."""
    total, first, found = sum(blocks), 0, []
    for size in blocks:
        inside = torch.arange(len(parameter)) % total
        found.append(((inside >= first) & (inside < first + size)).nonzero().flatten())
        first += size
    return found


def _record_refused_normuon(recorder: Recorder) -> None:
    from vpmoe.optimizer import MatrixLayout, NorMuon

    def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.ones(shape, dtype=dtype))

    def stepped(weight: torch.nn.Parameter, gradient: torch.Tensor) -> None:
        weight.grad = gradient
        NorMuon([weight]).step()

    turned = torch.nn.Parameter(torch.ones(3, 4).t())
    for name, act in {
        "momentum": lambda: NorMuon([parameter(2, 2)], momentum=1.0),
        "beta2": lambda: NorMuon([parameter(2, 2)], beta2=-0.1),
        "rate": lambda: NorMuon([parameter(2, 2)], lr=-1.0),
        "eps": lambda: NorMuon([parameter(2, 2)], eps=math.nan),
        "vector": lambda: NorMuon([parameter(4)]),
        "no rows": lambda: NorMuon([parameter(0, 4)]),
        "blocks": lambda: NorMuon(
            [parameter(5, 4)], layout=lambda _: MatrixLayout(block_rows=(2, 1))
        ),
        "half precision": lambda: stepped(
            parameter(2, 2, dtype=torch.bfloat16), torch.ones(2, 2, dtype=torch.bfloat16)
        ),
        "turned weights": lambda: stepped(turned, torch.ones(4, 3)),
    }.items():
        recorder.discrete(f"refused/normuon {name}", message_of(act), tensor="message")
