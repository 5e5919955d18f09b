"""The routing report: what `--optimizer normuon` does with each parameter of a model.

The model is built without memory, on torch's meta device, and asked with the functions that the
training run itself uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vpmoe.model.meta import meta_model


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
    with meta_model([*flags, "--optimizer", "normuon", "--expert-kernel", "grouped"]) as built:
        return _routes(*built)


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


def _routes(args: Any, model: Any) -> list[Route]:
    from vpmoe.optimizer.megatron import matrix_layout, parameter_policy

    routes = []
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        policy = parameter_policy(name, param, args)
        matrices: tuple[tuple[int, int, int], ...] = ()
        if policy.optimizer == "normuon":
            count = param.shape[0] if param.ndim == 3 else 1
            m, n = param.shape[-2:]
            blocks = matrix_layout(name, param, model.config, None).block_rows
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
