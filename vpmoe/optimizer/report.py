"""The routing report: what `--optimizer normuon` does with each parameter of a model.

The model is built without memory, on torch's meta device, and asked with the functions that the
training run itself uses.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vpmoe.runtime import detect_lane
from vpmoe.runtime.patches import replaced, skip_helper_build


@dataclass(frozen=True)
class Route:
    """One parameter.

    Attributes:
        name: qualified name in the model.
        shape: its shape.
        optimizer: `normuon` or `adamw`.
        lr_source: the flag that its learning rate comes from.
        lr: maximum learning rate.
        min_lr: minimum learning rate.
        weight_decay: 0 for vectors and scalars.
        matrices: (count, rows, columns) of what is orthogonalised; empty for AdamW.
    """

    name: str
    shape: tuple[int, ...]
    optimizer: str
    lr_source: str
    lr: float
    min_lr: float
    weight_decay: float
    matrices: tuple[tuple[int, int, int], ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **vars(self),
            "shape": list(self.shape),
            "matrices": [list(m) for m in self.matrices],
        }


def routing_report(flags: Sequence[str]) -> list[Route]:
    """Lists every parameter of the model that the flags describe, for one rank holding it all.

    Args:
        flags: of `vpmoe pretrain`, such as a preset's `to_flags()`; `--optimizer normuon` is added,
            and experts are stacked.

    Returns:
        The parameters in the model's order.

    Raises:
        ValueError: flags that vpMoE refuses.
        RuntimeError: the process has joined a process group.
    """
    if torch.distributed.is_initialized():
        raise RuntimeError("the routing report needs a process without a process group")
    lane = detect_lane()
    given = [*lane.default_flags, *flags, "--optimizer", "normuon", "--expert-kernel", "grouped"]
    environment = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    # Megatron prints every argument, and logs its warnings to stdout.
    quiet = contextlib.redirect_stdout(io.StringIO())
    with lane.activate(), skip_helper_build(), _environment(environment), quiet, _unlogged():
        from megatron.core import parallel_state
        from megatron.training.arguments import parse_args, validate_args

        from vpmoe.arguments import add_vpmoe_args
        from vpmoe.model.arguments import validate_model_args
        from vpmoe.optimizer.arguments import validate_optimizer_args

        with replaced(sys, "argv", ["vpmoe params", *given]):
            args = parse_args(add_vpmoe_args)
        validate_args(args, {"eval_interval": 1})
        # Data is not needed, so its flags are not checked.
        validate_model_args(args)
        validate_optimizer_args(args)
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            parallel_state.initialize_model_parallel()
            return _routes(args)
        finally:
            parallel_state.destroy_model_parallel()
            torch.distributed.destroy_process_group()


def render(routes: Sequence[Route]) -> str:
    """The report as a table."""
    header = ("parameter", "shape", "optimizer", "lr from", "lr", "min lr", "decay", "matrices")
    rows = [
        (
            route.name,
            _shape(route.shape),
            route.optimizer,
            route.lr_source,
            f"{route.lr:g}",
            f"{route.min_lr:g}",
            f"{route.weight_decay:g}",
            " + ".join(f"{k} x {_shape((m, n))}" for k, m, n in route.matrices) or "-",
        )
        for route in routes
    ]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    )


def _routes(args: Any) -> list[Route]:
    from vpmoe.model.builder import build_model, config_from_args
    from vpmoe.optimizer.megatron import matrix_layout, parameter_policy

    config = config_from_args(args)
    with torch.device("meta"):
        model = build_model(
            config,
            vocab_size=args.padded_vocab_size,
            max_sequence_length=args.max_position_embeddings,
            seed=args.seed,
        )
    routes = []
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        policy = parameter_policy(name, param, args)
        matrices: tuple[tuple[int, int, int], ...] = ()
        if policy.optimizer == "normuon":
            count = param.shape[0] if param.ndim == 3 else 1
            m, n = param.shape[-2:]
            blocks = matrix_layout(name, param, config, None).block_rows
            rows = [m] if blocks is None else [m // sum(blocks) * block for block in blocks]
            matrices = tuple((count, row, n) for row in rows)
        routes.append(
            Route(
                name=name,
                shape=tuple(param.shape),
                optimizer=policy.optimizer,
                lr_source=policy.lr_source,
                lr=policy.max_lr,
                min_lr=policy.min_lr,
                weight_decay=args.weight_decay if policy.decays else 0.0,
                matrices=matrices,
            )
        )
    return routes


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
