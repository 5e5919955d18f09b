"""The target of the case `formulas`: parts of model and optimizer, without a training.

Values that another way of computing them must give are invariants; what is refused where modules
are built, or called, is recorded as the message.
"""

from __future__ import annotations

import functools
import importlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases.presets import preset_flags
from vpmoe.cases.refused import (
    message_of,
    record_backends,
    record_modules,
    record_optimizer,
    record_start,
)
from vpmoe.cases.replay import Before, Polynomials, replay

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
        record_start(recorder)
        record_modules(recorder, settings["base"])
        _record_checkpoint(recorder, settings["base"])
        record_backends(recorder)
        _record_loss(recorder, generator)
        _record_polar_express(recorder, generator)
        _record_normuon(recorder, generator)


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


# --- checkpoints ------------------------------------------------------------------------------


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
            said = message_of(functools.partial(module.load_coefficients, path))
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

    group = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.8, "beta2": 0.9}
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
        return NorMuon(list(parameters.values()), 0.05, 0.8, 0.9, weight_decay=0.1, layout=layout)

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
            every = torch.arange(len(parameter))
            parts = _block_rows(parameter, blocks) if name == "blocks" else [every]
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
                        group,
                        Polynomials(),
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
    record_optimizer(recorder)


def _block_rows(parameter: torch.Tensor, blocks: tuple[int, ...]) -> list[torch.Tensor]:
    """Rows of each block over all groups of blocks."""
    total, first, found = sum(blocks), 0, []
    for size in blocks:
        inside = torch.arange(len(parameter)) % total
        found.append(((inside >= first) & (inside < first + size)).nonzero().flatten())
        first += size
    return found
