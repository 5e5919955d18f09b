"""The target of the case `skipped_step`: steps whose gradient is not finite, between others.

The case makes a number not finite itself: one hidden value in a forward pass, or one element of a
gradient in a backward pass. Megatron then skips the step, as vpMoE's optimizers tell it to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases.state import State, differing, training_state
from vpmoe.cases.statics import named_parameters, unwrap
from vpmoe.cases.training import prepared, stopping, train

_COUNTS = re.compile(r"number of (skipped|nan) iterations: +(\d+)")
_ITERATION = re.compile(r" iteration +(\d+)/")


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Trains, with some steps poisoned, and checks that these change nothing but the data position.

    Args:
        recorder: of this process.
        settings: `preset` (file), `conversations` (JSONL file), `flags` (of `vpmoe pretrain`),
            `poisoned` (a list of `step`, `value`, and `module`, whose output gets the value in the
            forward pass, or `parameter`, whose gradient gets it), `stop_after` (step after which
            the run ends as if cut short).

    Raises:
        RuntimeError: the training refused or failed.
    """
    from vpmoe.megatron.points import PRINT_LAST, SETUP, TRAIN_STEP

    watch = _Watch(recorder, settings["poisoned"])
    with prepared(recorder, settings) as (flags, _), ExitStack() as stack:
        from vpmoe.cases.observe import observe_training

        for point, wrap in (
            (SETUP, watch.wrap_setup),
            (TRAIN_STEP, watch.wrap_train_step),
            (PRINT_LAST, watch.wrap_print),
        ):
            stack.enter_context(point.wrapped(wrap))
        finite = FiniteSteps(recorder, watch.poisoned)
        stack.enter_context(observe_training(finite, settings.get("perturb_seed")))
        train([*flags, *stopping(settings)])


class FiniteSteps(Recorder):
    """A recorder that leaves out the numbers of some steps, since NaN passes no comparison.

    What is discrete and what is exact before a number is computed stays: ids, learning rates.

    Args:
        recorder: that records the rest.
        left_out: the steps.
    """

    _EXACT = ("learning_rate", "tokens_seen")

    def __init__(self, recorder: Recorder, left_out: Sequence[int]) -> None:
        super().__init__(recorder.rank)
        self._recorder = recorder
        self._left_out = frozenset(left_out)

    def wants(self, step: int) -> bool:
        """Whether tensors of the step are kept."""
        return step not in self._left_out and self._recorder.wants(step)

    def curve(
        self,
        step: int,
        metric: str,
        value: float,
        phase: str = "forward",
        grain: float | None = None,
    ) -> None:
        """Records one value of a curve."""
        if step not in self._left_out or metric in self._EXACT:
            self._recorder.curve(step, metric, value, phase, grain)

    def tensor(self, *, step: int, **record: Any) -> None:
        """Sketches a tensor of a step that is wanted."""
        if self.wants(step):
            self._recorder.tensor(step=step, **record)

    def discrete(self, module: str, value: Any, **place: Any) -> None:
        """Records a JSON value."""
        self._recorder.discrete(module, value, **place)

    def invariant(self, module: str, name: str, error: float, bound: float, **place: Any) -> None:
        """Records an invariant."""
        self._recorder.invariant(module, name, error, bound, **place)

    def table(self, name: str, rows: Sequence[Any]) -> None:
        """Records a table."""
        self._recorder.table(name, rows)

    def note(self, name: str, value: Any) -> None:
        """Keeps a note."""
        self._recorder.note(name, value)


class _Watch:
    """Poisons steps, and holds what they leave behind against what they found.

    Args:
        recorder: of this process.
        poisons: see `run`.
    """

    def __init__(self, recorder: Recorder, poisons: Sequence[Mapping[str, Any]]) -> None:
        self.recorder = recorder
        self.poisons = {int(poison["step"]): poison for poison in poisons}
        self.poisoned = tuple(self.poisons)
        self._step = 0
        self._applied = 0

    def wrap_setup(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def setup_model_and_optimizer(*args: Any, **kwargs: Any) -> Any:
            model, optimizer, scheduler = original(*args, **kwargs)
            modules = {
                name: module for chunk in model for name, module in unwrap(chunk).named_modules()
            }
            parameters = dict(named_parameters(model))
            for step, poison in self.poisons.items():
                value = float(poison["value"])
                if "module" in poison:
                    modules[poison["module"]].register_forward_hook(self._forward(step, value))
                else:
                    parameters[poison["parameter"]].register_hook(self._backward(step, value))
            return model, optimizer, scheduler

        return setup_model_and_optimizer

    def _forward(self, step: int, value: float) -> Callable[..., Any]:
        def hook(module: Any, inputs: Any, output: Any) -> Any:
            del module, inputs
            if self._step != step or self._applied:  # of the first micro-batch alone
                return None
            if isinstance(output, tuple):
                return (self._poisoned(output[0], value), *output[1:])
            return self._poisoned(output, value)

        return hook

    def _backward(self, step: int, value: float) -> Callable[[torch.Tensor], Any]:
        def hook(gradient: torch.Tensor) -> torch.Tensor | None:
            return self._poisoned(gradient, value) if self._step == step else None

        return hook

    def _poisoned(self, tensor: torch.Tensor, value: float) -> torch.Tensor:
        self._applied += 1
        first = torch.zeros(tensor.numel(), dtype=torch.bool)
        first[0] = True
        return tensor.masked_fill(first.view(tensor.shape), value)

    def wrap_train_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        from vpmoe.megatron.points import TRAIN_STEP

        def train_step(*args: Any, **kwargs: Any) -> Any:
            given = TRAIN_STEP.arguments(args, kwargs)
            found = [given[name] for name in ("model", "optimizer", "opt_param_scheduler")]
            self._step, self._applied = int(given["iteration"]) + 1, 0
            poisoned = self._step in self.poisons
            before = training_state(*found) if poisoned else {}
            result = original(*args, **kwargs)
            if poisoned:
                self._check(before, training_state(*found))
            # Megatron's result: losses, whether the step was skipped, and more.
            self.recorder.discrete(
                "schedule",
                {"skipped": int(result[1]), "steps": int(found[2].num_steps)},
                tensor="taken",
                step=self._step,
                phase="optimizer",
            )
            return result

        return train_step

    def _check(self, before: State, after: State) -> None:
        self.recorder.discrete(
            "poison", self._applied, tensor="applied", step=self._step, phase="backward"
        )
        changed = set(differing(before, after))
        for place in {**before, **after}:
            if place.module != "schedule" and place.tensor == "local_tokens_per_expert":
                continue  # counts of a step, which Megatron clears with it
            self.recorder.invariant(
                place.module,
                "a skipped step leaves it as it was",
                float(place in changed),
                0.0,
                step=self._step,
                phase="optimizer",
                tensor=f"{place.tensor}.kept",
            )

    def wrap_print(self, original: Callable[[str], None]) -> Callable[[str], None]:
        def print_rank_last(line: str) -> None:
            original(line)
            iteration = _ITERATION.search(line)
            if iteration:
                counts = {kind: int(count) for kind, count in _COUNTS.findall(line)}
                self.recorder.discrete(
                    "printed", counts, tensor="iterations", step=int(iteration[1])
                )

        return print_rank_last
