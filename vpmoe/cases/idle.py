"""The target of the case `idle_weights`: matrices, experts and rows that a step gives no gradient.

The case arranges that itself: it zeroes a feed-forward's first matrix, so that both of its matrices
have gradients of zero, and it puts experts so far back in the balancing bias that no token is
routed to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases.statics import named_parameters, unwrap
from vpmoe.cases.training import prepared, stopping, train
from vpmoe.cases.updates import stepped

# Far below every score, which is a sigmoid's.
_NEVER = -1000.0
_EPSILON = 2.0**-23


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Trains, and checks each step what it did to weights without gradient.

    Args:
        recorder: of this process.
        settings: `preset` (file), `conversations` (JSONL file), `flags` (of `vpmoe pretrain`),
            `zeroed` (a feed-forward module), `never` (a list of `router`, `expert`, and `from`,
            the step from which no token goes to it), `embedding` (its parameter),
            `stop_after` (step after which the run ends as if cut short).

    Raises:
        RuntimeError: the training refused or failed.
    """
    from vpmoe.megatron.points import SETUP, TRAIN_STEP

    watch = _Watch(recorder, settings)
    with prepared(recorder, settings) as (flags, _), ExitStack() as stack:
        from vpmoe.cases.observe import observe_training

        stack.enter_context(SETUP.wrapped(watch.wrap_setup))
        stack.enter_context(TRAIN_STEP.wrapped(watch.wrap_train_step))
        stack.enter_context(observe_training(recorder, settings.get("perturb_seed")))
        train([*flags, *stopping(settings)])


class _Watch:
    """Arranges idle weights, and looks at each step's optimizer.

    Args:
        recorder: of this process.
        settings: see `run`.
    """

    def __init__(self, recorder: Recorder, settings: Mapping[str, Any]) -> None:
        self.recorder = recorder
        self.zeroed = str(settings["zeroed"])
        self.never: Sequence[Mapping[str, Any]] = settings["never"]
        self.embedding = str(settings["embedding"])
        self._step = 0
        self._model: Sequence[torch.nn.Module] = ()

    def wrap_setup(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def setup_model_and_optimizer(*args: Any, **kwargs: Any) -> Any:
            model, optimizer, scheduler = original(*args, **kwargs)
            self._model = model
            first = dict(named_parameters(model))[f"{self.zeroed}.linear_fc1.weight"]
            first.data.zero_()
            optimizer.reload_model_params()
            step_ready = optimizer.step_with_ready_grads

            def step_with_ready_grads() -> bool:
                before = self._befores(optimizer)
                taken = bool(step_ready())
                self._check(before, optimizer)
                return taken

            optimizer.step_with_ready_grads = step_with_ready_grads
            return model, optimizer, scheduler

        return setup_model_and_optimizer

    def wrap_train_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def train_step(*args: Any, **kwargs: Any) -> Any:
            self._step = int(kwargs["iteration"]) + 1
            for chunk in self._model:
                for name, module in unwrap(chunk).named_modules():
                    for expert in self._experts_of(name):
                        module.expert_bias[expert] = _NEVER
            return original(*args, **kwargs)

        return train_step

    def _experts_of(self, router: str) -> Iterator[int]:
        for entry in self.never:
            if entry["router"] == router and self._step >= entry["from"]:
                yield int(entry["expert"])

    def _idle(self) -> dict[str, bool]:
        """Matrices without gradient in this step -> whether they never had one."""
        found = {f"{self.zeroed}.linear_fc{n}.weight": True for n in (1, 2)}
        for entry in self.never:
            if self._step >= entry["from"]:
                experts = str(entry["router"]).removesuffix("router")
                for n in (1, 2):
                    name = f"{experts}experts.local_experts.{entry['expert']}.linear_fc{n}.weight"
                    found[name] = entry["from"] == 1
        return found

    def _befores(self, optimizer: Any) -> dict[str, torch.Tensor]:
        wanted = [*self._idle(), self.embedding]
        return {
            name: parameter.detach().clone()
            for name, parameter, _, _ in stepped(self._model, optimizer)
            if name in wanted
        }

    def _check(self, befores: Mapping[str, torch.Tensor], optimizer: Any) -> None:
        """Looks at what the step did, while its gradients are there."""
        idle = self._idle()
        for name, parameter, inner, group in stepped(self._model, optimizer):
            state = inner.state.get(parameter, {})
            finite = bool(torch.isfinite(parameter).all())
            self._law(name, "every weight is finite", float(not finite), 0.0, "finite")
            if name in idle:
                self._check_matrix(name, befores[name], parameter, state, group, idle[name])
            elif name == self.embedding:
                self._check_rows(name, befores[name], parameter, group)

    def _check_matrix(
        self,
        name: str,
        before: torch.Tensor,
        parameter: torch.Tensor,
        state: Mapping[str, torch.Tensor],
        group: Mapping[str, Any],
        never: bool,
    ) -> None:
        assert parameter.grad is not None
        gradient = float(parameter.grad.abs().max())
        self._law(name, "its gradient is zero", gradient, 0.0, "zero_grad")
        momentum = float(state["momentum_buffer"].abs().max())
        self.recorder.discrete(
            name,
            momentum > 0.0,
            tensor="has_momentum",
            step=self._step,
            phase="optimizer",
        )
        if not never:
            return  # its momentum goes on: the replay of the update holds it to the formula
        gap = _decay_gap(before, parameter.detach(), group)
        self._law(name, "without gradient it decays, and no more", gap, _EPSILON, "decay")
        self._law(name, "without gradient it has no momentum", momentum, 0.0, "momentum")

    def _check_rows(
        self, name: str, before: torch.Tensor, parameter: torch.Tensor, group: Mapping[str, Any]
    ) -> None:
        """Rows of tokens that no batch has had: AdamW's share of the same."""
        assert parameter.grad is not None
        if self._step > 1:
            return  # then rows may have a momentum of before
        idle = parameter.grad.abs().amax(dim=1) == 0
        rows = int(idle.sum())
        self.recorder.discrete(name, rows, tensor="idle_rows", step=self._step, phase="optimizer")
        gap = _decay_gap(before[idle], parameter.detach()[idle], group)
        self._law(name, "rows without gradient decay, and no more", gap, _EPSILON, "decay")

    def _law(self, name: str, law: str, error: float, bound: float, tensor: str) -> None:
        module, _, weight = name.rpartition(".")
        self.recorder.invariant(
            module,
            law,
            error,
            bound,
            step=self._step,
            phase="optimizer",
            tensor=f"{weight}.{tensor}",
        )


def _decay_gap(before: torch.Tensor, after: torch.Tensor, group: Mapping[str, Any]) -> float:
    """Largest distance from W (1 - lr wd), relative to the weight."""
    expected = before.double() * (1.0 - group["lr"] * group["weight_decay"])
    size = expected.abs().clamp_min(torch.finfo(torch.float32).tiny)
    return float(((after.double() - expected).abs() / size).max())
