"""The recorder: receives what happens in a real training run, and attaches hooks to its modules.

An adapter is a function that runs someone's training code with hooks of its own and reports
to a `Recorder` what happens. It is started by `validation.running.worker` in each process of a run:

    def run(recorder, settings):                 # the target of a Case
        handles = attach_module(recorder, model, lambda: (step, micro_batch))
        ...
        recorder.curve(step, "lm_loss", loss)    # each step
        recorder.tensor(step=step, micro_batch=0, phase="reduction", module="layer.0",
                        tensor="weight.grad", value=gradient)
        recorder.discrete("config/window", 128)  # exact facts
        recorder.table("window/layer.0", [[0, 1], [0, 2], [1, 3]])
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from validation.running.notes import GRAIN
from validation.trace.classes import curve_class, event_class
from validation.trace.model import (
    PHASES,
    CurveKey,
    Event,
    HeldInvariant,
    Key,
    Row,
    TableKey,
    Trace,
)
from validation.trace.sketch import sketch

if TYPE_CHECKING:
    import torch


class Recorder:
    """Collects the records of one process.

    Args:
        rank: global rank of the process.
        steps: training steps whose tensors are kept (curves and discrete records always are).
    """

    def __init__(self, rank: int = 0, steps: Iterable[int] = ()) -> None:
        self.rank = rank
        self._steps = frozenset(steps)
        self._events: list[Event] = []
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._curves: dict[CurveKey, dict[int, float]] = {}
        self._curve_phases: dict[CurveKey, str] = {}
        self._tables: dict[TableKey, Sequence[Row]] = {}
        self._notes: dict[str, Any] = {}
        self._grains: dict[str, dict[str, float]] = {}

    def without_steps(self) -> Recorder:
        """The same records, for an observer who is to keep no tensors of steps.

        What either of the two receives is in the trace, in the order in which it came.
        """
        other = copy.copy(self)
        other._steps = frozenset()
        return other

    def wants(self, step: int) -> bool:
        """Whether tensors of this step are kept; step 0 (before training) always is."""
        return step == 0 or step in self._steps

    def curve(
        self,
        step: int,
        metric: str,
        value: float,
        phase: str = "forward",
        grain: float | None = None,
    ) -> None:
        """Records one value of a curve.

        Args:
            step: training step, from 1.
            metric: name, as a rule in snake_case, `name/part` for families.
            value: kept exactly.
            phase: what makes the value, one of `PHASES`.
            grain: how far, relative to the value, it may move because the numbers that it is made
                of were rounded when they were stored; added to its tolerance.

        Raises:
            ValueError: the metric already has a value at this step.
        """
        key = CurveKey(metric, self.rank)
        if self._curve_phases.setdefault(key, phase) != phase or phase not in PHASES:
            raise ValueError(
                f"metric {metric!r}: phase {phase!r} is unknown or another than before"
            )
        series = self._curves.setdefault(key, {})
        if step in series:
            raise ValueError(f"metric {metric!r} is recorded twice at step {step}")
        series[step] = float(value)
        self._add_grain(curve_class(key), step, grain)

    def tensor(
        self,
        *,
        step: int,
        micro_batch: int,
        phase: str,
        module: str,
        tensor: str,
        value: torch.Tensor,
        grain: float | None = None,
    ) -> None:
        """Sketches a tensor, if the recorder wants its step; `grain` as of a curve."""
        if self.wants(step):
            key = self._add(step, micro_batch, phase, module, tensor, sketch(value))
            self._add_grain(event_class(key), step, grain)

    def discrete(
        self,
        module: str,
        value: Any,
        *,
        tensor: str = "",
        step: int = 0,
        micro_batch: int = 0,
        phase: str = "init",
    ) -> None:
        """Records a JSON value that must be reproduced exactly.

        Args:
            module: what the record is about: a module's name, or a path such as `schedule/window`.
            value: numbers, text, lists and mappings.
            tensor: which tensor or property of it.
            step: training step, 0 before training.
            micro_batch: within the step.
            phase: one of `PHASES`.
        """
        self._add(step, micro_batch, phase, module, tensor, _plain(value))

    def invariant(
        self,
        module: str,
        name: str,
        error: float,
        bound: float,
        *,
        step: int = 0,
        phase: str = "init",
        tensor: str = "law",
        **facts: Any,
    ) -> None:
        """Records that an invariant of this run holds: a broken one fails whatever the golden says.

        Args:
            module: what the invariant is about.
            name: what it demands.
            error: how far it is off.
            bound: what it may be off by.
            step: training step, 0 before training.
            phase: one of `PHASES`.
            tensor: of the module.
            **facts: recorded with it, exactly.

        Raises:
            ValueError: a fact is called `law` or `holds`, which are the invariant's own.
        """
        taken = sorted({"law", "holds"} & facts.keys())
        if taken:
            raise ValueError(
                f"invariant {name!r} of {module!r}: a fact cannot be called {taken[0]!r}; choose "
                "another name"
            )
        broken = () if error <= bound else (str(error), _plain(bound))
        value = HeldInvariant(name, not broken, _plain(facts), *broken)
        self._add(step, 0, phase, module, tensor, value)

    def table(self, name: str, rows: Sequence[Row]) -> None:
        """Records a table, compared exactly.

        Args:
            name: of the table.
            rows: integers.

        Raises:
            ValueError: a table of this name exists.
        """
        key = TableKey(name, self.rank)
        if key in self._tables:
            raise ValueError(f"table {name!r} is recorded twice")
        self._tables[key] = [list(row) for row in rows]

    def note(self, name: str, value: Any) -> None:
        """Keeps a JSON value in the trace's provenance, for readers: it is not compared."""
        self._notes[name] = _plain(value)

    def trace(self, case: str, provenance: Mapping[str, Any]) -> Trace:
        """What was recorded so far."""
        notes = {**self._notes, **({GRAIN: self._grains} if self._grains else {})}
        return Trace(
            case=case,
            provenance={**provenance, "notes": notes} if notes else provenance,
            events=tuple(self._events),
            curves=self._curves,
            curve_phases=self._curve_phases,
            tables=self._tables,
        )

    def _add(
        self, step: int, micro_batch: int, phase: str, module: str, tensor: str, value: Any
    ) -> Key:
        if phase not in PHASES:
            raise ValueError(f"phase {phase!r}: one of {', '.join(PHASES)}")
        place = (step, micro_batch, phase, module, tensor)
        occurrence = self._seen[place]
        self._seen[place] += 1
        key = Key(step, micro_batch, phase, module, tensor, self.rank, occurrence)
        self._events.append(Event(key, value))
        return key

    def _add_grain(self, name: str, step: int, grain: float | None) -> None:
        """Keeps the largest grain of a class and step."""
        if grain is not None and math.isfinite(grain):
            steps = self._grains.setdefault(name, {})
            steps[str(step)] = max(steps.get(str(step), 0.0), float(grain))


def attach_module(
    recorder: Recorder, model: torch.nn.Module, position: Callable[[], tuple[int, int]]
) -> list[Any]:
    """Records outputs and output gradients of every module of a model, in execution order.

    Args:
        recorder: receives `forward` events (tensor `output`) and `backward` events (tensor
            `output.grad`); modules that return several tensors number them.
        model: its submodules are named as `named_modules()` does, the model itself as `model`.
        position: returns the current (step, micro-batch).

    Returns:
        Hook handles; call `remove()` on each to detach.
    """
    import torch

    def tensors(value: Any, name: str) -> Iterable[tuple[str, torch.Tensor]]:
        if isinstance(value, torch.Tensor):
            if value.is_floating_point():
                yield name, value
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                yield from tensors(item, f"{name}.{index}")

    def listen(name: str) -> Callable[..., None]:
        def forward(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            step, micro_batch = position()
            if step == 0 or not recorder.wants(step) or not torch.is_grad_enabled():
                return
            for tensor_name, value in tensors(output, "output"):
                recorder.tensor(
                    step=step,
                    micro_batch=micro_batch,
                    phase="forward",
                    module=name,
                    tensor=tensor_name,
                    value=value,
                )
                if value.requires_grad:
                    value.register_hook(backward(step, micro_batch, f"{tensor_name}.grad"))

        def backward(step: int, micro_batch: int, tensor_name: str) -> Callable[..., None]:
            def record(gradient: torch.Tensor) -> None:
                recorder.tensor(
                    step=step,
                    micro_batch=micro_batch,
                    phase="backward",
                    module=name,
                    tensor=tensor_name,
                    value=gradient,
                )

            return record

        return forward

    return [
        module.register_forward_hook(listen(name or "model"))
        for name, module in model.named_modules()
    ]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [_plain(v) for v in value]
    raise TypeError(f"a discrete record holds JSON values, not {type(value).__name__}")
