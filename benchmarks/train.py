"""Training speed against the tuned stock Megatron-core + Transformer Engine, on one GPU.

    python -m benchmarks.train --output RESULTS.json [--config configs/vpmoe-6b.toml] [--layers 8]
        [--tokens 16384] [--models stock vpmoe-graph] [--rounds 10]
    python -m benchmarks.train_show RESULTS.json ... [--picture FILE.svg]

Each model is a resident process, or one for each of its GPUs, that runs Megatron's `pretrain()` and
waits at the start of every step. In every round each of them, in an order drawn anew, takes
`--steps` timed steps after one that is not (the device's caches, and memory that the others gave
back). Then come, untimed, the breakdown by component (kernels between markers that hooks queue; a
CUDA graph has none) and the kernels of one profiled step. The tables go to stdout; everything to
the JSON file, which `train_show` shows again, with others if there are some.

On a machine without a GPU only vpMoE runs: `--config configs/vpmoe-tiny.toml --layers 4 --tokens
128 --models vpmoe` is a small test of the benchmark itself.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.train_models import MODELS, RANKS, environment_of, flags_of, is_graphed
from benchmarks.train_show import longest, show
from validation.config.python_path import entry
from validation.files import encode_json, write_atomically
from validation.running.ports import reserved_port

_ROOT = Path(__file__).resolve().parent.parent
_STACK_SECONDS = 1.0
_reserved = contextlib.ExitStack()


class Training:
    """A resident training process.

    Args:
        model: one of `MODELS`.
        flags: Megatron's and vpMoE's.
        log: receives what it prints.
        timeout: seconds that it may take to start, and for a block.
    """

    def __init__(self, model: str, flags: Sequence[str], log: Path, timeout: float) -> None:
        self.model, self._log, self._timeout = model, log, timeout
        self._received = b""
        ranks = RANKS.get(model, 1)
        environment = {**os.environ, **environment_of(model), "PYTHONPATH": _python_path()}
        if ranks > 1:
            # Until this process ends: a lock file is all that it takes.
            port = _reserved.enter_context(reserved_port())
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            environment |= {"WORLD_SIZE": str(ranks)}
        self._processes = []
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            with (log if rank == 0 else log.with_suffix(f".{rank}.log")).open("wb") as output:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "benchmarks.train_side", model, *flags],
                        env={**environment, **own},
                        stdin=subprocess.DEVNULL if rank else subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=output,
                    )
                )
        self._process = self._processes[0]

    def answer(self) -> dict[str, Any]:
        """Waits for an answer.

        Raises:
            RuntimeError: the process ended, or did not answer in time; with the end of its log,
                and in the second case where its threads were.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + self._timeout
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self._process.stdout], [], [], left)[0]
            content = os.read(self._process.stdout.fileno(), 1 << 20) if ready else b""
            if not content:
                raise self._failure(
                    f"gave no answer in {self._timeout} s" if not ready else "ended"
                )
            self._received += content
        line, _, self._received = self._received.partition(b"\n")
        return dict(json.loads(line))

    def block(self, steps: int, **wishes: bool) -> dict[str, Any]:
        """Trains some steps and returns their figures; see `benchmarks.train_side`."""
        self.ask(steps, **wishes)
        return self.answer()

    def ask(
        self, steps: int, *, components: bool = False, profile: bool = False, release: bool = False
    ) -> None:
        """Begins a block, whose figures `answer` waits for."""
        assert self._process.stdin is not None
        command = {
            "steps": steps,
            "components": components,
            "profile": profile,
            "release": release,
        }
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._failure("ended") from error

    def end(self) -> None:
        """Ends the processes."""
        assert self._process.stdin is not None
        for other in self._processes[1:]:
            other.kill()  # it waits for the first one's next step
        try:
            self._process.stdin.close()
            self._process.wait(30)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
        for process in self._processes:
            process.wait()

    def _failure(self, what: str) -> RuntimeError:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR1)  # the side writes its stacks into the log
            time.sleep(_STACK_SECONDS)
            self._process.kill()
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])
        return RuntimeError(f"the training of {self.model} {what}\n{tail}")


def measure(
    trainings: Sequence[Training],
    options: argparse.Namespace,
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Warms up, measures rounds, then components and kernels.

    A training that fails is reported and left out; the others go on.

    Args:
        trainings: as they start.
        options: of the command line.
        save: keeps what is known so far.
    """
    results: dict[str, Any] = {}
    alive: list[Training] = []
    release = len(trainings) > 1
    for training in trainings:
        try:
            facts = training.answer()["ready"]
            began = time.monotonic()
            for number in range(options.warm_up):
                training.block(1, release=release and number + 1 == options.warm_up)
                seconds = time.monotonic() - began
                print(f"{training.model}: warm-up {number + 1}, {seconds:.1f} s", file=sys.stderr)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            results[training.model] = {"error": str(error)}
            continue
        results[training.model] = {"facts": facts, "blocks": []}
        alive.append(training)
    order = random.Random(0)
    for number in range(options.rounds):
        for training in order.sample(alive, len(alive)):
            if release:
                training.block(1)
            block = training.block(options.steps, release=release)
            results[training.model]["blocks"].append(block)
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    save(results)
    for training in alive:
        try:
            for kind in ("components", "operators")[is_graphed(training.model) :]:
                training.block(1)
                detail = training.block(
                    3 if kind == "components" else 1,
                    components=kind == "components",
                    profile=kind == "operators",
                    release=release,
                )
                results[training.model][kind] = (
                    detail[kind] if kind == "components" else longest(detail[kind])
                )
        except RuntimeError as error:
            print(error, file=sys.stderr)
            results[training.model]["error"] = str(error)
        save(results)
    return results


def environment() -> dict[str, Any]:
    """Device and versions."""
    packages = ("torch", "triton", "megatron-core", "transformer_engine")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"device": device, **versions}


def build_data(folder: Path) -> None:
    """The dataset of the shipped conversations."""
    from vpmoe.data.build import build_dataset
    from vpmoe.tokenizer.asset import ensure_asset

    ensure_asset()
    conversations = [_ROOT / "data" / "sample" / "conversations.jsonl"]
    build_dataset(conversations, folder, workers=1, valid_fraction=0.0)


def _python_path() -> str:
    parts = (entry(str(_ROOT)), os.environ.get("PYTHONPATH"))
    return os.pathsep.join(filter(None, parts))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables; returns 1 when a training failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=_ROOT / "configs" / "vpmoe-6b.toml")
    parser.add_argument("--layers", type=int, help="of the model; the preset's when left out")
    parser.add_argument("--tokens", type=int, default=16384, help="of a step")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["stock", "vpmoe-graph"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="timed, of each model in each round")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before the first round")
    parser.add_argument(
        "--timeout", type=float, default=300, help="seconds of a start or a block of steps"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON; logs go beside it")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="of vpMoE's models")
    options = parser.parse_args(argv)
    stock = [model for model in options.models if model.startswith("stock")]
    if stock and importlib.util.find_spec("transformer_engine") is None:
        parser.error(f"{', '.join(stock)} need Transformer Engine; leave them out of --models")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    description: dict[str, Any] = {
        "environment": environment(),
        "config": options.config.stem,
        "layers": options.layers,
        "tokens": options.tokens,
        "rounds": options.rounds,
        "steps": options.steps,
    }

    def save(results: dict[str, Any]) -> None:
        # At once: a machine can be taken away.
        write_atomically(options.output, encode_json({**description, "results": results}))

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        build_data(data)
        trainings = []
        try:
            for model in options.models:
                more = [] if model.startswith("stock") else options.flags
                flags = flags_of(model, options.config, options.layers, options.tokens, data, more)
                log = options.output.with_suffix(f".{model}.log")
                trainings.append(Training(model, flags, log, options.timeout))
            results = measure(trainings, options, save)
        finally:
            for training in trainings:
                training.end()
    show({**description, "results": results})
    return int(any("error" in result for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
