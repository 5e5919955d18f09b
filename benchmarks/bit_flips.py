"""What a check says when one bit flips, in a weight, a gradient or an activation.

    python -m benchmarks.bit_flips --flips 1000 --json benchmarks/results/bit_flips.json

Trains the loop of `examples/own-loop`, whose golden is recorded and calibrated here, once for each
flip, with one bit of one number flipped at one step. What the golden shows then runs again twice,
as a check does it (`validation.gate.repeat`), without the flip. A flip that no record shows, bit
for bit, has changed nothing that was recorded: it is counted, and no check can see it.

With `--random` a module adds noise that no run has seeded, which must be NONDETERMINISTIC.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from validation.cases import Case
from validation.compare import Tolerances, compare
from validation.compare.tolerance import EXACT
from validation.files import encode_json, write_atomically
from validation.gate.repeat import first_difference, verdict_of
from validation.gate.verdict import Verdict
from validation.goldens import Golden, GoldenStore
from validation.rates import upper_bound
from validation.running.recorder import Recorder
from validation.trace import Trace

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "own-loop"
KINDS = ("weight", "gradient", "activation")
STEPS, BITS = 4, 32


@dataclass(frozen=True)
class Flip:
    """One bit of one fp32 number.

    Attributes:
        kind: of the tensor, one of `KINDS`.
        name: of the parameter, or of the module whose output it is.
        call: which forward pass, from 1, it happens in; or which gradient is added up.
        place: of the number in the tensor, as a fraction.
        bit: 0 is the lowest of the mantissa, 31 the sign.
    """

    kind: str
    name: str
    call: int
    place: float
    bit: int


def flip_in(tensor: torch.Tensor, flip: Flip) -> None:
    """Flips the bit, in place; the tensor is contiguous fp32."""
    words = tensor.detach().view(-1).view(torch.int32)
    at = int(flip.place * words.numel())
    mask = 1 << flip.bit
    words[at] ^= mask - (1 << BITS) if flip.bit == BITS - 1 else mask


def arm(model: torch.nn.Module, flip: Flip) -> None:
    """Hangs a hook on the model that flips the bit once."""
    calls = 0

    def due() -> bool:
        nonlocal calls
        calls += 1
        return calls == flip.call

    if flip.kind == "weight":
        weight = model.get_parameter(flip.name)
        model.register_forward_pre_hook(lambda *_: flip_in(weight, flip) if due() else None)
    elif flip.kind == "gradient":

        def flip_gradient(parameter: torch.Tensor) -> None:
            if due():
                assert parameter.grad is not None
                flip_in(parameter.grad, flip)

        model.get_parameter(flip.name).register_post_accumulate_grad_hook(flip_gradient)
    else:

        def flip_output(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor | None:
            if not due():
                return None
            changed = output.clone(memory_format=torch.contiguous_format)
            flip_in(changed, flip)
            return changed

        model.get_submodule(flip.name).register_forward_hook(flip_output)


def shake(model: torch.nn.Module, name: str) -> None:
    """Makes a module's output a little different each time, by the clock."""

    def noisy(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output * (1.0 + time.time_ns() % 100_000 * 1e-6)

    model.get_submodule(name).register_forward_hook(noisy)


class Loop:
    """The example's repository in a folder, with goldens, and runs of its case in this process.

    Args:
        folder: where the repository is made.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "repository"
        shutil.copytree(EXAMPLE, self.root, ignore=shutil.ignore_patterns("__pycache__"))
        self._git("init", "-q", "-b", "main")
        for name, value in (("name", "Ada"), ("email", "ada@example.org")):
            self._git("config", f"user.{name}", value)
        self._accept("update", "--reason", "the first golden")
        self._accept("calibrate", "--runs", "8")
        sys.path.insert(0, str(self.root))
        self._cases = importlib.import_module("golden_cases")
        self._loop = importlib.import_module("loop")
        self.case: Case = self._cases.CASES[0]
        self.golden: Golden = GoldenStore(self.root / "goldens").load("cpu", self.case.name)

    def _git(self, *words: str) -> None:
        subprocess.run(["git", *words], cwd=self.root, check=True, capture_output=True)

    def _accept(self, *words: str) -> None:
        self._git("add", "-A")
        self._git("commit", "-q", "-m", "state", "--allow-empty")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "GOLDEN_MLFLOW": "0"}
        command = [sys.executable, "-m", "validation.cli", *words]
        subprocess.run(command, cwd=self.root, env=environment, check=True, capture_output=True)

    def trace(self, prepare: Callable[[torch.nn.Module], None] | None = None) -> Trace:
        """Runs the case for a few steps, with something done to the model that it builds."""
        recorder = Recorder(steps=self.case.traced_steps)
        with self._built(prepare):
            self._cases.run(recorder, {**self.case.settings, "stop_after": STEPS})
        return recorder.trace(self.case.name, {})

    @contextmanager
    def _built(self, prepare: Callable[[torch.nn.Module], None] | None) -> Iterator[None]:
        build = self._loop.build_model

        def build_model(*words: Any) -> torch.nn.Module:
            model: torch.nn.Module = build(*words)
            if prepare is not None:
                prepare(model)
            return model

        with patch.object(self._loop, "build_model", build_model):
            yield

    def model(self) -> torch.nn.Module:
        """The model that it trains."""
        found: torch.nn.Module = self._loop.build_model(self.case.settings["seed"])
        return found


def draw(source: random.Random, model: torch.nn.Module, calls: int) -> Flip:
    """A flip anywhere in the model and the run."""
    kind = source.choice(KINDS)
    modules = [name for name, module in model.named_modules() if name]
    parameters = [name for name, _ in model.named_parameters()]
    name = source.choice(modules if kind == "activation" else parameters)
    return Flip(kind, name, source.randint(1, calls), source.random(), source.randrange(BITS))


def judged(first: Trace, again: Callable[[], Trace], allowed: Tolerances) -> Verdict:
    """What a check says of a run that has failed."""
    second = again()
    if first_difference(second, first, allowed) is None:
        return Verdict.FAIL
    return verdict_of([first, second, again()], allowed).verdict


def flips(loop: Loop, count: int, seed: int) -> dict[str, Any]:
    """Flips bits, one a run, and counts what a check says."""
    source, model = random.Random(seed), loop.model()
    clean = loop.trace()
    golden = loop.golden.trace.up_to(STEPS)
    if first_difference(golden, clean) is not None:
        raise SystemExit("a clean run in this process has other bits than the golden")
    calls = STEPS * int(loop.case.settings["micro_batches"])
    counts: Counter[str] = Counter()
    wrong: list[dict[str, Any]] = []
    for _ in range(count):
        flip = draw(source, model, calls)
        trace = loop.trace(lambda built, flip=flip: arm(built, flip))  # type: ignore[misc]
        counts[f"{flip.kind}s"] += 1
        if first_difference(golden, trace) is None and first_difference(trace, golden) is None:
            counts["not recorded"] += 1
            continue
        counts["recorded"] += 1
        exact = judged(trace, loop.trace, EXACT)
        counts[f"exact: {exact}"] += 1
        verdicts = {"exact": exact}
        if compare(golden, trace, loop.golden.tolerances).divergences:
            verdicts["tolerant"] = judged(trace, loop.trace, loop.golden.tolerances)
            counts[f"within tolerances: {verdicts['tolerant']}"] += 1
        else:
            counts["within tolerances: PASS"] += 1
        if set(verdicts.values()) != {Verdict.HARDWARE}:
            wrong.append({**flip.__dict__, **{k: str(v) for k, v in verdicts.items()}})
    failures = sum(n for name, n in counts.items() if name.endswith(": FAIL"))
    return {
        "flips": count,
        "seed": seed,
        "counts": dict(sorted(counts.items())),
        "called_a_failure_of_the_code": failures,
        "upper_bound_95": upper_bound(failures, counts["recorded"]),
        "wrong": wrong,
    }


def noise(loop: Loop) -> dict[str, Any]:
    """Makes each module in turn random, and asks whether it is called so and named."""
    found, allowed = {}, loop.golden.tolerances
    for name in [name for name, _ in loop.model().named_modules() if name]:

        def again(name: str = name) -> Trace:
            return loop.trace(lambda model: shake(model, name))

        runs = [again(), again(), again()]
        repeat = verdict_of(runs, allowed)
        where = repeat.first_divergence
        found[name] = {
            "verdict": str(repeat.verdict),
            "first": None if where is None else where.place,
            "named": where is not None and where.module in _around(name),
        }
    return found


def _around(name: str) -> Sequence[str]:
    """The module, those that hold it: an outer module's output is recorded after its parts'."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def main() -> None:
    """Runs and prints both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--random", action="store_true", help="also make each module random")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="bit-flips-") as folder:
        loop = Loop(Path(folder))
        began = time.monotonic()
        found: dict[str, Any] = flips(loop, options.flips, options.seed)
        if options.random:
            found["random"] = noise(loop)
        found["seconds"] = round(time.monotonic() - began, 1)
    for name, value in found["counts"].items():
        print(f"{value:6} {name}")
    print(f"{found['called_a_failure_of_the_code']:6} called a failure of the code")
    for name, value in found.get("random", {}).items():
        print(f"random {name}: {value['verdict']}, first at {value['first']}")
    if options.json:
        write_atomically(options.json, encode_json(found))
    failed = found["called_a_failure_of_the_code"] or any(
        value["verdict"] != "NONDETERMINISTIC" or not value["named"]
        for value in found.get("random", {}).values()
    )
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
