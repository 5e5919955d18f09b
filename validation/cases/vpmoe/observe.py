"""Watches a real Megatron run: what the recorder sees of `pretrain()`, and where it is attached.

Nothing here trains. `observe_training(recorder)` wraps, for the duration of a context, functions
that Megatron's loop calls anyway (`setup_model_and_optimizer`, `train_step`, `training_log`) and
the `get_batch` of vpMoE's forward step, and hangs hooks on the model and the optimizer.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from validation.cases.vpmoe.groups import parameter_group
from validation.cases.vpmoe.probe import allowed_intervals
from validation.recorder import Recorder, attach_module
from vpmoe.runtime.patches import replaced


@contextlib.contextmanager
def observe_training(recorder: Recorder, perturb_seed: int | None = None) -> Iterator[None]:
    """Records every step of the Megatron run started inside the context.

    Call it inside the lane (`vpmoe.runtime`), before `pretrain()`.

    Args:
        recorder: receives curves on every step, and tensors of the steps it asks for.
        perturb_seed: moves every initial weight by one unit in the last place, up or down.
    """
    import megatron.training.training as training
    from megatron.core.transformer.moe import moe_logging

    import vpmoe.data.batch as data_batch

    run = _Observation(recorder, perturb_seed)
    with ExitStack() as stack:
        for owner, name, wrap in (
            (training, "setup_model_and_optimizer", run.wrap_setup),
            (training, "train_step", run.wrap_train_step),
            (training, "training_log", run.wrap_training_log),
            (data_batch, "get_batch", run.wrap_get_batch),
        ):
            stack.enter_context(replaced(owner, name, wrap(getattr(owner, name))))
        tracker = _moe_tracker(run)
        stack.enter_context(replaced(moe_logging, "_MOE_METRICS_TRACKER", tracker))
        stack.callback(run.close)
        yield


class _Observation:
    """The state of one observed run."""

    def __init__(self, recorder: Recorder, perturb_seed: int | None) -> None:
        self.recorder = recorder
        self.perturb_seed = perturb_seed
        self.step = 0
        self.micro_batch = -1
        self.tokens_seen = 0
        self.moe_metrics: dict[str, list[float]] = {}
        self.routed: dict[str, torch.Tensor] = {}
        self._before: dict[str, torch.Tensor] = {}
        self._handles: list[Any] = []
        self._model: list[torch.nn.Module] = []

    # --- model and optimizer are there -------------------------------------------------------

    def wrap_setup(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def setup_model_and_optimizer(*args: Any, **kwargs: Any) -> Any:
            model, optimizer, scheduler = original(*args, **kwargs)
            self._attach(model, optimizer)
            return model, optimizer, scheduler

        return setup_model_and_optimizer

    def _attach(self, model: list[torch.nn.Module], optimizer: Any) -> None:
        self._model = model
        if self.perturb_seed is not None:
            self._perturb(optimizer)
        for name, parameter in self._parameters():
            module, _, tensor = name.rpartition(".")
            self.recorder.tensor(
                step=0, micro_batch=0, phase="init", module=module, tensor=tensor, value=parameter
            )
        self._record_routing(optimizer)
        for chunk in model:
            body = _unwrap(chunk)
            self._handles += attach_module(
                self.recorder, body, position=lambda: (self.step, max(self.micro_batch, 0))
            )
            for name, module in body.named_modules():
                if type(module).__name__.endswith("Router"):
                    self._handles.append(module.register_forward_hook(self._router_hook(name)))
        self._record_windows()
        self._watch_optimizer(optimizer)

    def _record_windows(self) -> None:
        """Probes every attention layer for the keys that its queries really use."""
        from megatron.training import get_args

        length = get_args().seq_length
        for chunk in self._model:
            for name, module in _unwrap(chunk).named_modules():
                if name.endswith("self_attention"):
                    self.recorder.table(
                        f"window/{name}",
                        allowed_intervals(
                            module.core_attention,
                            length,
                            module.num_attention_heads_per_partition,
                            module.num_query_groups_per_partition,
                            module.hidden_size_per_attention_head,
                        ),
                    )

    def _parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for index, chunk in enumerate(self._model):
            prefix = f"chunk{index}." if len(self._model) > 1 else ""
            for name, parameter in _unwrap(chunk).named_parameters():
                yield prefix + name, parameter

    def _record_routing(self, optimizer: Any) -> None:
        """Which optimizer steps a parameter, with what learning rate and decay: discrete."""
        owners: dict[int, tuple[str, Mapping[str, Any]]] = {}
        for part in _parts(optimizer):
            inner = getattr(part, "optimizer", None)
            for group in getattr(inner, "param_groups", ()):
                for parameter in group["params"]:
                    owners[id(parameter)] = (type(inner).__name__, group)
            masters = zip(
                getattr(part, "float16_groups", ()),
                getattr(part, "fp32_from_float16_groups", ()),
                strict=True,
            )
            for halves, mains in masters:
                for half, main in zip(halves, mains, strict=True):
                    if id(main) in owners:
                        owners[id(half)] = owners[id(main)]
        for name, parameter in self._parameters():
            kind, group = owners.get(id(parameter), ("none", {}))
            self.recorder.discrete(
                name,
                {
                    "optimizer": kind,
                    "shape": list(parameter.shape),
                    "dtype": str(parameter.dtype),
                    "max_lr": group.get("max_lr"),
                    "min_lr": group.get("min_lr"),
                    "weight_decay_multiplier": group.get("wd_mult"),
                },
                tensor="optimizer",
            )

    def _perturb(self, optimizer: Any) -> None:
        """One unit in the last place of every weight that is not zero."""
        generator = torch.Generator().manual_seed(int(self.perturb_seed or 0))
        for _, parameter in self._parameters():
            up = torch.rand(parameter.shape, generator=generator) < 0.5
            target = torch.where(up, torch.inf, -torch.inf).to(parameter)
            moved = torch.nextafter(parameter.data, target)
            parameter.data = torch.where(parameter == 0, parameter.data, moved)
        optimizer.reload_model_params()

    # --- one step ----------------------------------------------------------------------------

    def wrap_train_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def train_step(*args: Any, **kwargs: Any) -> Any:
            iteration = kwargs.get("iteration")
            self.step = int(iteration) + 1 if iteration is not None else self.step + 1
            self.micro_batch = -1
            self.routed.clear()
            return original(*args, **kwargs)

        return train_step

    def wrap_get_batch(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def get_batch(*args: Any, **kwargs: Any) -> Any:
            batch = original(*args, **kwargs)
            if not torch.is_grad_enabled():  # an evaluation, not a training micro-batch
                return batch
            self.micro_batch += 1
            fields = ("tokens", "labels", "loss_mask", "span_id", "position_ids", "document_ids")
            for field in fields:
                value = getattr(batch, field)
                if value is not None:
                    self.recorder.discrete(
                        "batch",
                        _digest(value),
                        tensor=field,
                        step=self.step,
                        micro_batch=self.micro_batch,
                        phase="data",
                    )
            if batch.tokens is not None:
                self.tokens_seen += batch.tokens.numel()
            return batch

        return get_batch

    def _watch_optimizer(self, optimizer: Any) -> None:
        prepare, step_ready = optimizer.prepare_grads, optimizer.step_with_ready_grads

        def prepare_grads() -> bool:
            found_inf = bool(prepare())
            self._record_gradients()
            return found_inf

        def step_with_ready_grads() -> bool:
            for name, parameter in self._parameters():
                if name not in self._before:
                    self._before[name] = torch.empty_like(parameter, requires_grad=False)
                self._before[name].copy_(parameter.detach())
            success = bool(step_ready())
            self._record_updates()
            return success

        optimizer.prepare_grads = prepare_grads
        optimizer.step_with_ready_grads = step_with_ready_grads

    def _record_gradients(self) -> None:
        """Gradients after every reduction and before clipping, in the order of the parameters."""
        for name, parameter in self._parameters():
            gradient = getattr(parameter, "main_grad", None)
            if gradient is None:
                gradient = parameter.grad
            if gradient is None:
                continue
            module, _, tensor = name.rpartition(".")
            self.recorder.curve(
                self.step,
                f"parameter_grad_norm/{name}",
                torch.linalg.vector_norm(gradient).item(),
                "reduction",
            )
            if self.recorder.wants(self.step):
                self.recorder.tensor(
                    step=self.step,
                    micro_batch=0,
                    phase="reduction",
                    module=module,
                    tensor=f"{tensor}.grad",
                    value=gradient,
                )

    def _record_updates(self) -> None:
        squares: dict[str, tuple[float, int]] = {}
        for name, parameter in self._parameters():
            # In place: a fresh buffer of the embedding's size costs more than the arithmetic.
            update = self._before[name].neg_().add_(parameter.detach())
            total, count = squares.get(parameter_group(name), (0.0, 0))
            norm = torch.linalg.vector_norm(update).item()
            squares[parameter_group(name)] = (total + norm**2, count + update.numel())
            if self.recorder.wants(self.step):
                module, _, tensor = name.rpartition(".")
                self.recorder.tensor(
                    step=self.step,
                    micro_batch=0,
                    phase="optimizer",
                    module=module,
                    tensor=f"{tensor}.update",
                    value=update,
                )
        for group, (total, count) in sorted(squares.items()):
            self.recorder.curve(
                self.step, f"update_rms/{group}", (total / count) ** 0.5, "optimizer"
            )

    def wrap_training_log(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def training_log(loss_dict: Any, total_loss_dict: Any, *args: Any, **kwargs: Any) -> Any:
            losses = {name: value.float().item() for name, value in loss_dict.items()}
            grad_norm = _argument(args, kwargs, "grad_norm")
            learning_rate = _argument(args, kwargs, "learning_rate")
            result = original(loss_dict, total_loss_dict, *args, **kwargs)
            self._record_curves(losses, grad_norm, learning_rate)
            return result

        return training_log

    def _record_curves(
        self, losses: Mapping[str, float], grad_norm: Any, learning_rate: Any
    ) -> None:
        step, curve = self.step, self.recorder.curve
        for name, value in losses.items():
            curve(step, name.replace(" ", "_"), value)
        curve(
            step, "grad_norm", float("nan") if grad_norm is None else float(grad_norm), "reduction"
        )
        if learning_rate is not None:
            curve(step, "learning_rate", float(learning_rate), "optimizer")
        curve(step, "tokens_seen", float(self.tokens_seen), "data")
        for name, layers in self.moe_metrics.items():
            for layer, value in enumerate(layers, start=1):
                curve(step, f"aux_loss/{name}/layer{layer}", value)
        for name, counts in self.routed.items():
            load = counts.double()
            curve(step, f"expert_load/{name}", (load.max() / load.mean()).item())

    def _router_hook(self, name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
            del module, inputs
            if torch.is_grad_enabled():
                counts = outputs[1].detach().sum(dim=0)
                self.routed[name] = self.routed.get(name, torch.zeros_like(counts)) + counts

        return hook

    def close(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()


def _moe_tracker(run: _Observation) -> Any:
    """Megatron's tracker of per-layer router losses, which also tells them to the observation."""
    from megatron.core.transformer.moe.moe_logging import MoEMetricsTracker

    class ObservedMetrics(MoEMetricsTracker):
        """Keeps a step's values, reduced over ranks, when the original clears them."""

        def clear(self) -> None:
            run.moe_metrics = {name: entry.values.tolist() for name, entry in self.metrics.items()}
            super().clear()

    return ObservedMetrics()


# Positional order of Megatron's training_log after (loss_dict, total_loss_dict).
_LOG_ARGUMENTS = (
    "learning_rate",
    "iteration",
    "loss_scale",
    "report_memory_flag",
    "skipped_iter",
    "grad_norm",
)


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Any:
    position = _LOG_ARGUMENTS.index(name)
    return args[position] if position < len(args) else kwargs[name]


def _parts(optimizer: Any) -> list[Any]:
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def _unwrap(chunk: torch.nn.Module) -> torch.nn.Module:
    while isinstance(inner := getattr(chunk, "module", None), torch.nn.Module):
        chunk = inner
    return chunk


def _digest(value: torch.Tensor) -> str:
    """BLAKE2b over dtype, shape and bytes: which ids, in which places."""
    array = value.detach().cpu().contiguous().numpy()
    digest = hashlib.blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=16)
    digest.update(array.tobytes())
    return digest.hexdigest()
