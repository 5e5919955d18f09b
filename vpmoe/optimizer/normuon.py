"""NorMuon (Li et al., 2025): Muon with a second moment for each row of the update.

For a weight W [m, n], rows are outputs, with gradient G and fp32 state M [m, n] and v [m, 1]:

1. M <- mu M + (1 - mu) G; U = (1 - mu) G + mu M.
2. O = PolarExpress(U).
3. v <- b2 v + (1 - b2) mean of O^2 over the columns; N = O / sqrt(v + eps), rescaled to ||O||_F.
4. W <- W (1 - lr wd) - lr sqrt(max(1, m / n)) N.

Matrices of one shape are worked on together, whichever parameters they are in: in one launch where
`vpmoe.optimizer.triton_kernel` takes them, and otherwise stacked, in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import distributed

from vpmoe.optimizer.chunks import (
    Chunk,
    MatrixLayout,
    Rates,
    Unit,
    batches,
    parts,
    rates_of,
    stacked,
    units_of,
    unstack,
)
from vpmoe.optimizer.graph import GraphedWork
from vpmoe.optimizer.polar_express import (
    DEFAULT_SAFETY_FACTOR,
    Coefficients,
    polar_express,
    polar_express_coefficients,
)

TPMode = Literal["duplicated", "distributed", "blockwise"]

# Scratch memory of a chunk, in bytes an element, and the share of the state that it may take.
_SCRATCH_BYTES = 16
_SCRATCH_SHARE = 0.08
_SMALLEST_CHUNK = 1 << 20


class NorMuon(torch.optim.Optimizer):
    """NorMuon over 2-D weights, and 3-D ones as stacks of matrices.

    NaN and infinity propagate into the weights, as in torch's own optimizers; in Megatron the step
    is skipped before (see `vpmoe.optimizer.megatron`).

    Args:
        params: parameters or groups, fp32 or fp64; 2-D [m, n] or 3-D [E, m, n].
        lr: learning rate.
        momentum: mu.
        beta2: decay of v.
        eps: added to v.
        weight_decay: decoupled, times lr.
        coefficients: of Polar Express; those of `safety_factor` when None.
        safety_factor: sf of Polar Express.
        tp_mode: how sharded matrices are orthogonalised: `duplicated` gathers them on every rank,
            `distributed` sums Gram matrices, `blockwise` takes each shard for a matrix.
        layout: maps a parameter to its `MatrixLayout`; None for plain ones.
        graph_after: replays steps in a CUDA graph after so many that ran as they are, and again
            after any but the learning rate has changed, as when gradients lie elsewhere; None for
            no graph. fp32 CUDA parameters only, and no sharded matrices.

    Raises:
        ValueError: a hyperparameter out of range, or a parameter that is no matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.95,
        beta2: float = 0.95,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        *,
        coefficients: Coefficients | None = None,
        safety_factor: float = DEFAULT_SAFETY_FACTOR,
        tp_mode: TPMode = "duplicated",
        layout: Callable[[torch.Tensor], MatrixLayout] | None = None,
        graph_after: int | None = None,
    ) -> None:
        for name, value in (("momentum", momentum), ("beta2", beta2)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} must be in [0, 1), found {value}")
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0.0:
                raise ValueError(f"{name} must not be negative, found {value}")
        self._coefficients = coefficients or polar_express_coefficients(safety_factor)
        self._safety_factor = safety_factor
        self._tp_mode: TPMode = tp_mode
        self._layout = layout or (lambda param: MatrixLayout())
        # By position, since mixed precision puts fp32 copies in the place of parameters.
        self._layouts: list[list[MatrixLayout]] = []
        self._chunks: list[list[Chunk]] | None = None
        self._graph_after = graph_after
        self._graphed: GraphedWork | None = None
        # Of each chunk, where a graph reads them.
        self._on_device: list[list[Rates[torch.Tensor]]] = []
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "beta2": beta2,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch's; every parameter must be a matrix or a stack of them."""
        super().add_param_group(param_group)
        layouts = []
        for param in self.param_groups[-1]["params"]:
            if param.ndim not in (2, 3) or not param.is_floating_point() or 0 in param.shape:
                raise ValueError(
                    "NorMuon takes matrices [m, n] and stacks [E, m, n], found "
                    f"{list(param.shape)} of {param.dtype}"
                )
            layout = self._layout(param)
            if layout.shards == 1 or self._tp_mode == "blockwise":
                layout = replace(layout, partition_dim=None, tp_group=None)
            rows = layout.block_rows
            if rows is not None and (param.ndim != 2 or param.shape[0] % sum(rows)):
                raise ValueError(
                    f"blocks of {list(rows)} rows do not divide a weight {list(param.shape)}"
                )
            layouts.append(layout)
        self._layouts.append(layouts)
        self._chunks = None

    def init_state(self) -> None:
        """Creates the zero state of every parameter that has none."""
        for group in self.param_groups:
            for param in group["params"]:
                if self.state[param]:
                    continue
                if param.dtype not in (torch.float32, torch.float64):
                    raise ValueError(
                        f"NorMuon steps on fp32 main weights, found {param.dtype}; wrap the model "
                        "in mixed precision"
                    )
                self.state[param]["momentum_buffer"] = torch.zeros_like(
                    param, memory_format=torch.contiguous_format
                )
                self.state[param]["second_momentum"] = param.new_zeros((*param.shape[:-1], 1))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads, as torch's."""
        super().load_state_dict(state_dict)
        self._chunks = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.init_state()
        if self._chunks is None:
            self._chunks = self._plan()
            if self._graph_after is not None:
                self._on_device = [[_device_rates(c) for c in chunks] for chunks in self._chunks]
                self._graphed = GraphedWork(self._queue_on_device, self._graph_after)
        rates = [
            [rates_of(group["lr"], group["weight_decay"], chunk.full_shape) for chunk in chunks]
            for group, chunks in zip(self.param_groups, self._chunks, strict=True)
        ]
        if self._graphed is None:
            self._queue(rates)
        else:
            for places, values in zip(self._on_device, rates, strict=True):
                for place, value in zip(places, values, strict=True):
                    place.keep.fill_(value.keep)
                    place.step.fill_(value.step)
            self._graphed(self._decided())
        return loss

    def _queue_on_device(self) -> None:
        self._queue(self._on_device)

    def _queue(self, rates: Sequence[Sequence[Rates[Any]]]) -> None:
        """Queues the whole step, with the rates of every group's chunks."""
        assert self._chunks is not None
        for group, chunks, of_chunks in zip(self.param_groups, self._chunks, rates, strict=True):
            for chunk, rate in zip(chunks, of_chunks, strict=True):
                if chunk.kernel is not None:
                    gradients = [
                        None if unit.param.grad is None else _contiguous_gradient(unit.param)
                        for unit in chunk.units
                    ]
                    chunk.kernel.step(
                        gradients,
                        rate.keep,
                        rate.step,
                        **{name: group[name] for name in ("momentum", "beta2", "eps")},
                    )
                    continue
                units = [unit for unit in chunk.units if unit.param.grad is not None]
                if units:
                    self._update(chunk, units, group, rate)

    def _decided(self) -> Hashable:
        """All that a graph keeps of a step: where its tensors lie, and every number but rates."""
        numbers = tuple(
            (group["momentum"], group["beta2"], group["eps"], bool(group["weight_decay"]))
            for group in self.param_groups
        )
        places = tuple(
            (param.data_ptr(), *(state.data_ptr() for state in self.state[param].values()))
            + (() if param.grad is None else (param.grad.data_ptr(), param.grad.dtype))
            for group in self.param_groups
            for param in group["params"]
        )
        return numbers, places

    def _plan(self) -> list[list[Chunk]]:
        """Sorts every group's matrices into chunks of one shape each."""
        total = sum(param.numel() for group in self.param_groups for param in group["params"])
        budget = max(int(total * 4 * _SCRATCH_SHARE / _SCRATCH_BYTES), _SMALLEST_CHUNK)
        plan = []
        for group, layouts in zip(self.param_groups, self._layouts, strict=True):
            alike: dict[tuple[Any, ...], list[Unit]] = {}
            fitting: dict[tuple[Any, ...], list[torch.Tensor]] = {}
            for param, layout in zip(group["params"], layouts, strict=True):
                if not param.is_contiguous():
                    raise ValueError(f"NorMuon needs contiguous weights, found {param.stride()}")
                if _fits_kernel(param, layout):
                    fitting.setdefault((*param.shape[-2:], param.device), []).append(param)
                    continue
                for m, unit in units_of(param, layout, budget):
                    key = (m, param.shape[-1], layout, param.device, param.dtype)
                    alike.setdefault(key, []).append(unit)
            chunks = [self._kernel_chunk(params, total) for params in fitting.values()]
            for (m, n, layout, _, _), units in alike.items():
                for part in batches(units, budget, n):
                    chunks.append(Chunk((m, n), replace(layout, block_rows=None), part))
            plan.append(chunks)
        return plan

    def _kernel_chunk(self, params: Sequence[torch.Tensor], total: int) -> Chunk:
        from vpmoe.optimizer.triton_kernel import SmallMatrices

        m, n = params[0].shape[-2:]
        kernel = SmallMatrices(
            params,
            [self.state[param]["momentum_buffer"] for param in params],
            [self.state[param]["second_momentum"] for param in params],
            self._coefficients,
            self._safety_factor,
            int(total * 4 * _SCRATCH_SHARE),
        )
        units = tuple(Unit(param, (0, param.numel() // n)) for param in params)
        return Chunk((m, n), MatrixLayout(), units, kernel)

    def _update(
        self, chunk: Chunk, units: Sequence[Unit], group: dict[str, Any], rates: Rates[Any]
    ) -> None:
        (m, n), full_n = chunk.shape, chunk.full_shape[1]
        layout, mu = chunk.layout, group["momentum"]
        weights = [unit.view(unit.param) for unit in units]
        momenta = [unit.view(self.state[unit.param]["momentum_buffer"]) for unit in units]
        seconds = [unit.view(self.state[unit.param]["second_momentum"]) for unit in units]
        gradients = [unit.view(_contiguous_gradient(unit.param)) for unit in units]

        torch._foreach_lerp_(momenta, gradients, 1.0 - mu)
        update = stacked(gradients, m, n).lerp_(stacked(momenta, m, n), mu)
        update = self._orthogonalise(update, layout)

        reduce = _reduction(layout)
        rows = update.float() if update.dtype == torch.bfloat16 else update
        del update
        squares = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square()
        if reduce is not None and layout.partition_dim == 1:
            squares = reduce(squares, "sum")
        second = stacked(seconds, m, 1).lerp_(squares / full_n, 1.0 - group["beta2"])
        unstack(seconds, second)
        # ||O||_F and ||O / sqrt(v + eps)||_F from the rows' sums alone.
        weighted = squares / (second + group["eps"])
        norms = torch.cat((squares, weighted), dim=-1).sum(dim=-2, keepdim=True)
        if reduce is not None and layout.partition_dim == 0:
            norms = reduce(norms, "sum")
        before, after = norms[..., :1], norms[..., 1:]
        rescale = torch.where(after > 0, before / after, torch.zeros_like(after)).sqrt()
        factor = rescale * (second + group["eps"]).rsqrt()
        step = rows.mul_(factor * rates.step)

        if group["weight_decay"]:
            torch._foreach_mul_(weights, rates.keep)
        torch._foreach_add_(weights, parts(weights, step))

    def _orthogonalise(self, update: torch.Tensor, layout: MatrixLayout) -> torch.Tensor:
        if layout.tp_group is None:
            return polar_express(update, self._coefficients, self._safety_factor)
        assert layout.partition_dim is not None
        if self._tp_mode == "distributed":
            return polar_express(
                update,
                self._coefficients,
                self._safety_factor,
                reduce=_reduction(layout),
                partition_dim=layout.partition_dim,
            )
        shards = [torch.empty_like(update) for _ in range(layout.shards)]
        distributed.all_gather(shards, update, group=layout.tp_group)
        whole = torch.cat(shards, dim=1 + layout.partition_dim)
        whole = polar_express(whole, self._coefficients, self._safety_factor)
        size = update.shape[1 + layout.partition_dim]
        rank = distributed.get_rank(layout.tp_group)
        return whole.narrow(1 + layout.partition_dim, rank * size, size).contiguous()


def _fits_kernel(param: torch.Tensor, layout: MatrixLayout) -> bool:
    """Whether one launch steps a parameter's matrices."""
    if not param.is_cuda or param.dtype != torch.float32 or layout != MatrixLayout():
        return False
    from vpmoe.optimizer.triton_kernel import LARGEST_SIDE

    return min(param.shape[-2:]) <= LARGEST_SIDE


def _device_rates(chunk: Chunk) -> Rates[torch.Tensor]:
    """Where a graph finds a chunk's rates.

    Raises:
        ValueError: a chunk that a graph cannot take.
    """
    param = chunk.units[0].param
    if param.dtype != torch.float32 or chunk.layout.tp_group is not None:
        raise ValueError(
            f"a graph of NorMuon's step takes whole fp32 matrices, found {param.dtype} "
            f"{list(param.shape)} on {chunk.layout.shards} tensor-parallel rank(s)"
        )
    return Rates(param.new_zeros(()), param.new_zeros(()))


def _contiguous_gradient(param: torch.Tensor) -> torch.Tensor:
    gradient = param.grad
    assert gradient is not None
    if gradient.is_sparse:
        raise RuntimeError("NorMuon does not support sparse gradients")
    return gradient.to(param.dtype).contiguous()


def _reduction(layout: MatrixLayout) -> Callable[[torch.Tensor, str], torch.Tensor] | None:
    if layout.tp_group is None:
        return None
    operations = {"sum": distributed.ReduceOp.SUM, "max": distributed.ReduceOp.MAX}

    def reduce(tensor: torch.Tensor, operation: str) -> torch.Tensor:
        tensor = tensor.contiguous()
        distributed.all_reduce(tensor, operations[operation], group=layout.tp_group)
        return tensor

    return reduce
