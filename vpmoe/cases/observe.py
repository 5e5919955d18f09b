"""Watches a real Megatron run: what the recorder sees of `pretrain()`, and where it is attached.

Nothing here trains. `observe_training(recorder)` wraps, for the duration of a context, functions
that Megatron's loop calls anyway (`setup_model_and_optimizer`, `train_step`, `training_log`,
`finalize_model_grads`) and the `get_batch` of vpMoE's forward step, and hangs hooks on the model
and the optimizer.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from validation.running.recorder import Recorder, attach_module
from vpmoe.cases.canonical import record_canonical
from vpmoe.cases.grain import moved_square, update_grain
from vpmoe.cases.groups import parameter_group
from vpmoe.cases.marks import record_marks
from vpmoe.cases.rates import gradient_norms, record_rates
from vpmoe.cases.statics import (
    gradient_of,
    named_parameters,
    norm_of,
    record_statics,
    sampled,
    unwrap,
)
from vpmoe.cases.tokens import record_batch
from vpmoe.cases.updates import after_update, before_update
from vpmoe.runtime.patches import replaced


@contextlib.contextmanager
def observe_training(
    recorder: Recorder,
    perturb_seed: int | None = None,
    *,
    by_kind: bool = False,
    canonical: bool = False,
) -> Iterator[None]:
    """Records every step of the Megatron run started inside the context.

    Call it inside the lane (`vpmoe.runtime`), before `pretrain()`.

    Args:
        recorder: receives curves on every step, and tensors of the steps it asks for.
        perturb_seed: moves every initial weight by one unit in the last place, up or down.
        by_kind: also records the marks of each parameter, and at each step the learning rate,
            decay and clipping of each kind of parameter.
        canonical: of the steps, records what every layout has (`vpmoe.cases.canonical`) in the
            place of what this one has.
    """
    import vpmoe.data.batch as data_batch
    from vpmoe.megatron import points
    from vpmoe.megatron.moe import observed_metrics

    attach = functools.partial(record_canonical, recorder) if canonical else None
    observed = recorder.without_steps() if canonical else recorder
    run = _Observation(observed, perturb_seed, by_kind, attach)
    with ExitStack() as stack:
        for point, wrap in (
            (points.SETUP, run.wrap_setup),
            (points.TRAIN_STEP, run.wrap_train_step),
            (points.TRAINING_LOG, run.wrap_training_log),
            (points.FINALIZE_GRADS, run.wrap_finalize),
        ):
            stack.enter_context(point.wrapped(wrap))
        stack.enter_context(
            replaced(data_batch, "get_batch", run.wrap_get_batch(data_batch.get_batch))
        )
        stack.enter_context(observed_metrics(run.keep_moe_metrics))
        stack.callback(run.close)
        yield


def perturb_weights(model: Sequence[torch.nn.Module], optimizer: Any, seed: int) -> None:
    """Moves every weight that is not zero by one unit in the last place, up or down."""
    generator = torch.Generator().manual_seed(int(seed))
    for _, parameter in named_parameters(model):
        up = torch.rand(parameter.shape, generator=generator) < 0.5
        target = torch.where(up, torch.inf, -torch.inf).to(parameter)
        moved = torch.nextafter(parameter.data, target)
        parameter.data = torch.where(parameter == 0, parameter.data, moved)
    optimizer.reload_model_params()


class _Observation:
    """The state of one observed run."""

    def __init__(
        self,
        recorder: Recorder,
        perturb_seed: int | None,
        by_kind: bool,
        attach: Callable[..., None] | None,
    ) -> None:
        self.recorder = recorder
        self.perturb_seed = perturb_seed
        self.by_kind = by_kind
        self.attach = attach
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
            from megatron.training import get_args

            graph = get_args().cuda_graph_impl
            if graph != "none":
                raise RuntimeError(
                    f"--cuda-graph-impl {graph}: replays of a graph run no hooks, so most of a "
                    "trace would be missing; record without it"
                )
            model, optimizer, scheduler = original(*args, **kwargs)
            self._attach(model, optimizer)
            return model, optimizer, scheduler

        return setup_model_and_optimizer

    def _attach(self, model: list[torch.nn.Module], optimizer: Any) -> None:
        from megatron.training import get_args

        self._model = model
        if self.perturb_seed is not None:
            perturb_weights(model, optimizer, self.perturb_seed)
        record_statics(self.recorder, model, optimizer, get_args().seq_length)
        if self.by_kind:
            for name, parameter in named_parameters(model):
                record_marks(self.recorder, name, parameter)
        for chunk in model:
            body = unwrap(chunk)
            self._handles += attach_module(
                self.recorder, body, position=lambda: (self.step, max(self.micro_batch, 0))
            )
            for name, module in body.named_modules():
                if type(module).__name__.endswith("Router"):
                    self._handles.append(module.register_forward_hook(self._router_hook(name)))
        self._watch_optimizer(optimizer)
        if self.attach is not None:
            self.attach(model, optimizer, lambda: self.step)

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
            record_batch(self.recorder, batch, self.step, self.micro_batch)
            if batch.tokens is not None:
                self.tokens_seen += batch.tokens.numel()
            return batch

        return get_batch

    def _watch_optimizer(self, optimizer: Any) -> None:
        prepare, step_ready = optimizer.prepare_grads, optimizer.step_with_ready_grads
        unclipped: dict[str, float] = {}

        def prepare_grads() -> bool:
            found_inf = bool(prepare())
            self._record_gradients()
            if self.by_kind:
                unclipped.update(gradient_norms(self._model, optimizer))
            return found_inf

        def step_with_ready_grads() -> bool:
            self._before = {
                name: self._watched(parameter).clone()
                for name, parameter in named_parameters(self._model)
            }
            befores = before_update(self.recorder, self.step, self._model, optimizer)
            if self.by_kind:
                record_rates(self.recorder, self.step, self._model, optimizer, unclipped)
            success = bool(step_ready())
            after_update(self.recorder, self.step, self._model, optimizer, befores)
            self._record_updates()
            return success

        optimizer.prepare_grads = prepare_grads
        optimizer.step_with_ready_grads = step_with_ready_grads

    def wrap_finalize(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def finalize_model_grads(*args: Any, **kwargs: Any) -> Any:
            self._record_local_gradients()
            return original(*args, **kwargs)

        return finalize_model_grads

    def _record_local_gradients(self) -> None:
        """This rank's gradients before any reduction, summed over its micro-batches."""
        squares = 0.0
        for name, gradient in self._gradients():
            squares += norm_of(sampled(gradient)) ** 2
            self._record_gradient(name, "local_grad", "backward", gradient)
        self.recorder.curve(self.step, "local_grad_norm", squares**0.5, "backward")

    def _record_gradients(self) -> None:
        """Gradients after every reduction and before clipping, in the order of the parameters."""
        for name, gradient in self._gradients():
            norm = norm_of(gradient)
            self.recorder.curve(self.step, f"parameter_grad_norm/{name}", norm, "reduction")
            self._record_gradient(name, "grad", "reduction", gradient)

    def _gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in named_parameters(self._model):
            gradient = gradient_of(parameter)
            if gradient is not None:
                yield name, gradient

    def _record_gradient(self, name: str, kind: str, phase: str, value: torch.Tensor) -> None:
        module, _, tensor = name.rpartition(".")
        self.recorder.tensor(
            step=self.step,
            micro_batch=0,
            phase=phase,
            module=module,
            tensor=f"{tensor}.{kind}",
            value=value,
        )

    def _watched(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """What of a parameter this step's update is measured on: all of it in a traced step."""
        values = parameter.detach()
        return values if self.recorder.wants(self.step) else sampled(values)

    def _record_updates(self) -> None:
        squares: dict[str, tuple[float, int]] = {}
        grains: dict[str, float] = {}
        for name, parameter in named_parameters(self._model):
            group, weight = parameter_group(name), self._watched(parameter)
            # In place: a fresh buffer of the embedding's size costs more than the arithmetic.
            update = self._before.pop(name).neg_().add_(weight)
            if self.recorder.wants(self.step):
                module, _, tensor = name.rpartition(".")
                self.recorder.tensor(
                    step=self.step,
                    micro_batch=0,
                    phase="optimizer",
                    module=module,
                    tensor=f"{tensor}.update",
                    value=update,
                    grain=update_grain(weight, update),
                )
                update, weight = sampled(update), sampled(weight)
            total, count = squares.get(group, (0.0, 0))
            norm = norm_of(update)
            squares[group] = (total + norm**2, count + update.numel())
            grains[group] = math.hypot(grains.get(group, 0.0), moved_square(weight, update))
        for group, (total, count) in sorted(squares.items()):
            self.recorder.curve(
                self.step,
                f"update_rms/{group}",
                (total / count) ** 0.5,
                "optimizer",
                grain=grains[group] / total if total else None,
            )

    def wrap_training_log(self, original: Callable[..., Any]) -> Callable[..., Any]:
        from vpmoe.megatron.points import TRAINING_LOG

        def training_log(*args: Any, **kwargs: Any) -> Any:
            given = TRAINING_LOG.arguments(args, kwargs)
            losses = {name: value.float().item() for name, value in given["loss_dict"].items()}
            grad_norm, learning_rate = given["grad_norm"], given["learning_rate"]
            result = original(*args, **kwargs)
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
        for name, buffer in self._expert_biases():
            number = torch.arange(1, buffer.numel() + 1, device=buffer.device)
            curve(step, f"expert_bias/{name}", (buffer.double() * number).sum().item(), "reduction")

    def _expert_biases(self) -> Iterator[tuple[str, torch.Tensor]]:
        for chunk in self._model:
            for name, buffer in unwrap(chunk).named_buffers():
                if name.endswith(".expert_bias"):
                    yield name.removesuffix(".expert_bias"), buffer

    def _router_hook(self, name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
            del module, inputs
            if torch.is_grad_enabled():
                choices = outputs[1].detach()
                self.recorder.tensor(
                    step=self.step,
                    micro_batch=max(self.micro_batch, 0),
                    phase="forward",
                    module=name,
                    tensor="choices",
                    value=choices.float(),
                )
                counts = choices.sum(dim=0)
                self.routed[name] = self.routed.get(name, torch.zeros_like(counts)) + counts

        return hook

    def keep_moe_metrics(self, metrics: dict[str, list[float]]) -> None:
        """Keeps a step's router losses, by layer, for its curves."""
        self.moe_metrics = metrics

    def close(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()
