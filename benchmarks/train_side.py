"""One resident training of `benchmarks.train`: waits for commands at the start of every step.

    commands   {"steps": K, "components": false, "profile": false, "release": false}, a line each;
               the end of them ends the training
    answers    {"ready": {...}}, then a block's figures, a line each

`release` gives cached memory back to the device after the block.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TextIO

import torch

from benchmarks.train_components import Components
from benchmarks.train_models import providers
from validation.throughput.meter import CpuMeter, CudaMeter
from validation.throughput.pacer import take_pipes
from vpmoe.cases.pace import facts, tokens_of_step


class _EndedError(Exception):
    """There are no more commands."""


class Side:
    """Runs blocks of steps, and measures them.

    Args:
        commands: lines of the parent.
        answers: lines to the parent.
    """

    def __init__(self, commands: TextIO, answers: TextIO) -> None:
        self._commands, self._answers = commands, answers
        self._leads = os.environ.get("RANK", "0") == "0"
        self._meter = CudaMeter() if torch.cuda.is_available() else CpuMeter()
        self._components = Components()
        self._command: dict[str, Any] | None = None
        self._facts: dict[str, Any] = {}
        self._model: list[Any] = []
        self._left = self._tokens = 0
        self._began = 0.0
        self._operators: dict[str, float] = {}
        self._profile = ExitStack()

    def before_step(self) -> None:
        """Waits for permission; ranks but the first wait for the first one's collectives."""
        if not self._leads:
            return
        if self._command is None:
            self._say({"ready": self._facts})
        elif self._left:
            self._left -= 1
            return
        else:
            self._close(self._command)
        line = self._commands.readline()
        if not line:
            raise _EndedError
        self._command = json.loads(line)
        self._open(self._command)

    def attach(self, stack: ExitStack) -> None:
        """Puts itself into Megatron's loop until the stack is closed."""
        import megatron.training.training as training

        import vpmoe.data.batch as data_batch
        from vpmoe.runtime.patches import replaced

        def setup(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                model, optimizer, scheduler = original(*args, **kwargs)
                self._facts = facts(model)
                self._model = model
                step = optimizer.step

                def timed(*words: Any, **options: Any) -> Any:
                    with self._components.span("optimizer"):
                        return step(*words, **options)

                optimizer.step = timed
                return model, optimizer, scheduler

            return wrapped

        def train_step(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                self.before_step()
                self._tokens += tokens_of_step()
                return original(*args, **kwargs)

            return wrapped

        def get_batch(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                with self._components.span("data"):
                    return original(*args, **kwargs)

            return wrapped

        for owner, name, wrap in (
            (training, "setup_model_and_optimizer", setup),
            (training, "train_step", train_step),
            (data_batch, "get_batch", get_batch),
        ):
            stack.enter_context(replaced(owner, name, wrap(getattr(owner, name))))

    def _open(self, command: dict[str, Any]) -> None:
        self._left, self._tokens = command["steps"] - 1, 0
        self._meter.reset_peak()
        self._meter.synchronise()
        for chunk in self._model if command["components"] else ():
            self._components.attach(_body(chunk))
        if command["profile"]:
            self._operators = {}
            self._profile.enter_context(self._meter.profile(self._operators))
        self._began = time.perf_counter()

    def _close(self, command: dict[str, Any]) -> None:
        self._meter.synchronise()
        seconds = time.perf_counter() - self._began
        self._profile.close()
        steps = command["steps"]
        answer = {
            "seconds": seconds / steps,
            "tokens": self._tokens * int(os.environ.get("WORLD_SIZE", "1")) / steps,
            "peak_bytes": self._meter.peak_bytes(),
        }
        if command["components"]:
            answer["components"] = self._components.take(seconds, steps)
        if command["profile"]:
            answer["operators"] = {k: v / steps for k, v in self._operators.items()}
        if command["release"] and torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._say(answer)

    def _say(self, document: dict[str, Any]) -> None:
        self._answers.write(json.dumps(document) + "\n")
        self._answers.flush()


def _body(chunk: Any) -> Any:
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk


def main() -> int:
    """Trains the model of the first argument with the flags that follow, until told to end."""
    model, *flags = sys.argv[1:]
    side = Side(*take_pipes())
    faulthandler.register(signal.SIGUSR1)
    from vpmoe import pretrain
    from vpmoe.runtime import detect_lane

    with detect_lane().activate(), providers(model), ExitStack() as stack:
        side.attach(stack)
        try:
            pretrain.main(flags)
        except _EndedError:
            return 0
    print("the training ended by itself")
    return 1


if __name__ == "__main__":
    sys.exit(main())
