"""Initial weights that depend on the seed and a weight's name, and on nothing else.

Megatron draws weights from streams that the start-up before, the layout and the device have moved.
Here every matrix is drawn whole from its own generator, seeded by its global name, and each rank
keeps its part: tensor-, expert- and pipeline-parallel models start from the same weights as the
single-process one, and grouped experts from those of sequential ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_layer import TransformerLayer

from vpmoe.megatron.helpers import get_pg_rank, get_pg_size
from vpmoe.model.config import VpmoeConfig

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")
_EXPERT = re.compile(r"experts\.local_experts\.(\d+)\.")
# Vectors whose modules set them: the norms' ones, zero softmax offsets, GRAPE-M's frequencies.
_SET_BY_MODULE = ("layernorm.weight", "softmax_offset", "grapem.phi")


@torch.no_grad()
def initialize_weights(
    model: torch.nn.Module,
    config: VpmoeConfig,
    seed: int,
    pg_collection: ProcessGroupCollection,
) -> None:
    """Gives every parameter its initial value; none is left as it was allocated.

    Matrices are drawn: projections into the residual stream with the configuration's
    `output_layer_init_method`, embeddings with `embedding_init_method`, everything else with
    `init_method`. Biases are zero. Norms, softmax offsets and phi keep what their modules set.

    Args:
        model: a pipeline stage whose matrices and biases may be uninitialised.
        config: vpMoE's configuration.
        seed: of the run.
        pg_collection: process groups; `tp`, `ep` and `expt_tp` are used.

    Raises:
        ValueError: a parameter that no rule covers, by name.
    """
    assert config.num_moe_experts is None or pg_collection.ep is not None
    local_experts = (config.num_moe_experts or 0) // get_pg_size(pg_collection.ep)
    first_expert = get_pg_rank(pg_collection.ep) * local_experts
    for name, parameter in global_parameters(model):
        if parameter.ndim < 2:
            _fill_vector(name, parameter)
            continue
        for part, matrix in _matrices(name, parameter, first_expert):
            group = pg_collection.expt_tp if _EXPERT.search(part) else pg_collection.tp
            _draw(part, matrix, parameter, _method(part, config), seed, group)


def global_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yields (name, parameter) with layers counted from 0 over the whole model."""
    numbers = {
        f"{name}.": module.layer_number - 1
        for name, module in model.named_modules()
        if isinstance(module, TransformerLayer)
    }
    for name, parameter in model.named_parameters():
        found = _LAYER.search(name)
        if found:
            number = numbers[name[: found.end()]]
            name = f"{name[: found.start(1)]}{number}{name[found.end(1) :]}"
        yield name, parameter


def _fill_vector(name: str, parameter: torch.nn.Parameter) -> None:
    if name.endswith(".bias"):
        parameter.zero_()
    elif not name.endswith(_SET_BY_MODULE):
        raise ValueError(f"{name}: no rule says how this parameter starts")


def _matrices(
    name: str, parameter: torch.nn.Parameter, first_expert: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the matrices of a parameter with their global names."""
    if parameter.ndim == 2:
        found = _EXPERT.search(name)
        if found:
            number = first_expert + int(found.group(1))
            name = f"{name[: found.start(1)]}{number}{name[found.end(1) :]}"
        yield name, parameter
    elif parameter.ndim == 3:
        # Stacked experts, named as the sequential ones.
        stem, _, weight = name.rpartition(".")
        linear = {"weight1": "linear_fc1", "weight2": "linear_fc2"}.get(weight)
        if linear is None:
            raise ValueError(f"{name}: no rule says what these stacked matrices are")
        for index, matrix in enumerate(parameter):
            yield f"{stem}.local_experts.{first_expert + index}.{linear}.weight", matrix
    else:
        raise ValueError(f"{name}: no rule says how a parameter of {parameter.ndim} axes starts")


def _method(name: str, config: VpmoeConfig) -> Callable[[torch.Tensor], object]:
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        method = config.output_layer_init_method
    elif name.startswith("embedding."):
        method = config.embedding_init_method
    else:
        method = config.init_method
    assert method is not None
    return method


def _draw(
    name: str,
    matrix: torch.Tensor,
    parameter: torch.nn.Parameter,
    method: Callable[[torch.Tensor], object],
    seed: int,
    group: torch.distributed.ProcessGroup,
) -> None:
    """Draws the whole matrix and keeps this rank's part of it."""
    parts, part, axis = 1, 0, 0
    if getattr(parameter, "tensor_model_parallel", False):
        parts, part = get_pg_size(group), get_pg_rank(group)
        dimension: int = parameter.partition_dim  # type: ignore[attr-defined]
        axis = dimension - (parameter.ndim - matrix.ndim)
    shape = list(matrix.shape)
    shape[axis] *= parts
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    with _seeded(int.from_bytes(digest[:8], "little") >> 1, matrix.device):
        whole = torch.empty(shape, dtype=torch.float32, device=matrix.device)
        method(whole)
    matrix.copy_(whole.chunk(parts, dim=axis)[part])


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds the device's default generator, which initialisers draw from, for the context."""
    if device.type == "cuda":
        with torch.random.fork_rng(devices=[device]):
            torch.cuda.manual_seed(seed)
            yield
        return
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
