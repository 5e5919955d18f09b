"""Inside a training process: steps wait for permission, blocks of them are measured.

    commands   {"do": "block", "steps": K, "profile": false} or {"do": "stop"}    a line on stdin
    answers    {"ready": {...}}, then a block's figures                           a line each

A training calls `pacer.before_step()` at the start of every step, and wraps its optimizer's step
with `pacer.optimizer()`. A block lasts from the start of its first step to the start of the step
after its last one, so that all a training does between steps is in it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO


def take_pipes() -> tuple[TextIO, TextIO]:
    """This process's stdin and stdout as (commands, answers), for itself alone.

    What a training prints goes to stderr from now on, and what it starts reads nothing.
    """
    commands, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    return commands, answers


class TrainingStoppedError(Exception):
    """Ends a training from inside when the parent has seen enough; not a failure."""


class Meter(Protocol):
    """What measures a device."""

    def synchronise(self) -> None:
        """Waits until the device has done what it was given."""

    def reset_peak(self) -> None:
        """Forgets the peak of memory."""

    def peak_bytes(self) -> int:
        """The peak of memory since the last reset."""

    def reference(self) -> float:
        """Seconds that a fixed kernel takes now."""

    def mark(self, marks: list[Any]) -> None:
        """Adds this moment, when the device comes to it, to `marks`, without waiting for it."""

    def laps(self, marks: list[Any]) -> list[float]:
        """Seconds from each mark to the next, of work that is done."""

    def span(self, spans: list[Any]) -> AbstractContextManager[None]:
        """Adds the time spent inside to `spans`."""

    def seconds(self, spans: list[Any]) -> float:
        """Seconds of the spans together, of work that is done."""

    def profile(self, operators: dict[str, float]) -> AbstractContextManager[None]:
        """Puts the seconds spent inside, by kernel or operator, into `operators`."""

    def describe(self) -> dict[str, Any]:
        """Facts of the device."""


@dataclass
class _Block:
    """A block under way."""

    remaining: int
    steps: int
    reference: float
    began: float = 0.0
    tokens: int = 0
    marks: list[Any] = field(default_factory=list)
    spans: list[Any] = field(default_factory=list)
    operators: dict[str, float] | None = None
    profiler: ExitStack = field(default_factory=ExitStack)


class Pacer:
    """Handed to a case's `throughput` function.

    Args:
        commands: lines of the parent; its end means stop.
        answers: lines to the parent.
        meter: of the device that the training uses.
    """

    def __init__(self, commands: TextIO, answers: TextIO, meter: Meter) -> None:
        self._commands = commands
        self._answers = answers
        self._meter = meter
        self._block: _Block | None = None
        self._facts: dict[str, Any] = {}
        self._ready = False

    def describe(self, **facts: Any) -> None:
        """States facts of the training before its first step, such as `flops_per_token`."""
        self._facts.update(facts)

    def before_step(self) -> None:
        """Waits here, at the start of a step, until the step may run.

        Raises:
            TrainingStoppedError: there are to be no more steps.
        """
        if not self._ready:
            self._ready = True
            self._answer({"ready": {**self._meter.describe(), **self._facts}})
        if self._block is not None:
            self._meter.mark(self._block.marks)
            if self._block.remaining:
                self._block.remaining -= 1
                return
            self._answer(self._close(self._block))
            self._block = None
        line = self._commands.readline()
        command = json.loads(line) if line else {"do": "stop"}
        if command["do"] == "stop":
            raise TrainingStoppedError
        self._block = self._open(command)

    def tokens(self, count: int) -> None:
        """Adds tokens that the step trains on."""
        if self._block is not None:
            self._block.tokens += count

    @contextlib.contextmanager
    def optimizer(self) -> Iterator[None]:
        """Counts the time inside as the optimizer's."""
        if self._block is None:
            yield
            return
        with self._meter.span(self._block.spans):
            yield

    def _open(self, command: Mapping[str, Any]) -> _Block:
        # A collection that falls into one block and not into the next is no property of the code.
        gc.collect()
        gc.freeze()
        gc.disable()
        reference = self._meter.reference()
        block = _Block(command["steps"] - 1, command["steps"], reference)
        self._meter.reset_peak()
        self._meter.synchronise()
        if command["profile"]:
            block.operators = {}
            block.profiler.enter_context(self._meter.profile(block.operators))
        block.began = time.perf_counter()
        self._meter.mark(block.marks)
        return block

    def _close(self, block: _Block) -> dict[str, Any]:
        self._meter.synchronise()
        seconds = time.perf_counter() - block.began
        gc.enable()
        block.profiler.close()
        return {
            "steps": block.steps,
            "seconds": seconds,
            "laps": self._meter.laps(block.marks),
            "tokens": block.tokens,
            "peak_bytes": self._meter.peak_bytes(),
            "reference_seconds": block.reference,
            "optimizer_seconds": self._meter.seconds(block.spans),
            "operators": block.operators,
        }

    def _answer(self, document: Mapping[str, Any]) -> None:
        self._answers.write(json.dumps(document) + "\n")
        self._answers.flush()
