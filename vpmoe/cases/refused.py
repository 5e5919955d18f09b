"""What is refused where modules and optimizers are built or called, and by attention backends.

Flags that lead there are refused before, which the case `refusals` records.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases.presets import preset_flags


def message_of(act: Callable[[], Any]) -> str:
    """The type and message of what an action is refused with; "" if it is not."""
    try:
        act()
    except (ValueError, RuntimeError, TypeError, NotImplementedError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def record_start(recorder: Recorder) -> None:
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
            said = message_of(functools.partial(build_optimizer, config, (), argparse.Namespace()))
            recorder.discrete(f"refused/{name}", said, tensor="message")


def record_modules(recorder: Recorder, preset: str) -> None:
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
    yield "fused experts on a cpu", _raising(local_unsupported_reason(config))
    asked: dict[str, dict[str, Any]] = {
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
    }
    for name, values in asked.items():
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
            functools.partial(initialize_weights, stranger, model.config, 1, model.pg_collection),
        )


def record_backends(recorder: Recorder) -> None:
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
                asks: Any = SimpleNamespace(is_cuda=cuda, dtype=dtype, shape=(8, 1, 4, channels))
                reasons = {
                    backend.name: backend.unsupported_reason(pattern, asks, ids)
                    for backend in backends.BACKENDS
                }
                place = name if installed else f"{name}, nothing installed"
                recorder.discrete(f"backends/{place}", reasons, tensor="reasons")
    query = torch.zeros(8, 1, 4, 16)
    for requested in ("triton", "te"):
        recorder.discrete(
            f"backends/{requested}",
            message_of(functools.partial(backends.choose_backend, requested, plain, query, None)),
            tensor="message",
        )


def record_optimizer(recorder: Recorder) -> None:
    """What NorMuon refuses."""
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
