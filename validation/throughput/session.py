"""Two resident trainings, one of each revision, that run in turns.

Only one of the two trains at any time, the other waits at the start of a step. What measures is
this `validation` package, copied outside of both checkouts; the training code is the checkout's.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from validation.cases import Case
from validation.config import lane_of
from validation.files import encode_json, write_atomically
from validation.isolation import isolated
from validation.running.execution import RunError
from validation.running.revisions import copied_gate, revision_path

SIDES = ("base", "head")
BLOCK_SECONDS = 0.05
"""Of a block: what disturbs a machine lasts about a second, and both sides must see the same."""
_SAMPLE_SECONDS = 0.1
_GRACE_SECONDS = 10.0
_LOG_TAIL = 12
# Compilation, caches, allocator and a planted fault's calibration are over by then.
_WARM_UP_STEPS = 8
_SIZING_STEPS = 3
_ORDERS = (("base", "head", "head", "base"), ("head", "base", "base", "head"))


@dataclass(frozen=True, kw_only=True)
class SessionPlan:
    """What is compared.

    Attributes:
        case: with a `throughput` function.
        lane: where it runs.
        trees: side -> checkout whose code it trains.
        logs: folder that receives a log of each side.
        fault: `module:function` planted in the head.
        block_seconds: a block has as many steps as last this long, at least one.
        seed: of the order of the sides in each quad.
        first: the side whose process starts first.
    """

    case: Case
    lane: str
    trees: Mapping[str, Path]
    logs: Path
    fault: str | None = None
    block_seconds: float = BLOCK_SECONDS
    seed: int = 0
    first: str = "base"

    def start(self, number: int) -> SessionPlan:
        """One start of several: other orders of quads, the other side's process first in turns."""
        return replace(self, seed=number, first=SIDES[number % len(SIDES)])


@dataclass(frozen=True, kw_only=True)
class Block:
    """A measured block of steps.

    Attributes:
        side: `base` or `head`.
        began: seconds since the session began.
        steps: how many.
        seconds: wall-clock time of all of them.
        laps: time of each, on the device's clock where it has one.
        tokens: trained on.
        peak_bytes: of memory during the block.
        reference_seconds: what the reference kernel took right before.
        optimizer_seconds: spent in the optimizer's steps.
        machine: what the watch saw meanwhile.
        operators: seconds by kernel or operator; None unless profiled.
    """

    side: str
    began: float
    steps: int
    seconds: float
    laps: Sequence[float]
    tokens: int
    peak_bytes: int
    reference_seconds: float
    optimizer_seconds: float
    machine: Mapping[str, Any] = field(default_factory=dict)
    operators: Mapping[str, float] | None = None

    @property
    def step_seconds(self) -> float:
        """Median time of a step, which a hiccup of the host hardly moves."""
        return statistics.median(self.laps)

    def to_json(self) -> dict[str, Any]:
        """Every attribute."""
        return asdict(self)


@dataclass(frozen=True)
class Quad:
    """Four neighbouring blocks, two of each side."""

    blocks: Sequence[Block]

    @property
    def effect(self) -> float:
        """Log ratio of the head's median step time to the base's, free of linear drift."""
        return self._contrast([block.step_seconds for block in self.blocks])

    @property
    def whole_effect(self) -> float:
        """The same of whole blocks: a step in many that waits is in it, and so is any hiccup."""
        return self._contrast([block.seconds for block in self.blocks])

    def _contrast(self, seconds: Sequence[float]) -> float:
        signs = [-0.5 if block.side == "base" else 0.5 for block in self.blocks]
        return sum(sign * math.log(each) for sign, each in zip(signs, seconds, strict=True))


class Watch:
    """Looks at the machine while a block runs; this one sees nothing."""

    def started(self, pids: Sequence[int], facts: Mapping[str, Any]) -> None:
        """Both trainings stand ready.

        Args:
            pids: their processes.
            facts: what the head's pacer described.
        """

    def begin(self) -> None:
        """A block begins."""

    def sample(self) -> None:
        """A block is under way; called several times a second."""

    def end(self) -> dict[str, Any]:
        """A block has ended; returns what was seen, as JSON values."""
        return {}


class Session:
    """Two trainings that stand ready; use `open_session`."""

    def __init__(self, plan: SessionPlan, sides: Mapping[str, _Side], watch: Watch) -> None:
        self.plan = plan
        self.facts: dict[str, Mapping[str, Any]] = {}
        self.block_steps = 1
        self._sides = sides
        self._watch = watch
        self._began = time.monotonic()
        self._orders = random.Random(plan.seed)  # noqa: S311 an experiment's order, no secret

    def warm_up(self) -> float:
        """Waits until both train at their speed; returns seconds of a step, of the slower side."""
        for name, side in self._sides.items():
            self.facts[name] = side.answer(lambda: None)["ready"]
        self._watch.started([s.pid for s in self._sides.values()], self.facts["head"])
        for name in SIDES:
            self.block(name, _WARM_UP_STEPS)
        slower = max(self.block(name, _SIZING_STEPS).step_seconds for name in SIDES)
        self.block_steps = max(1, math.ceil(self.plan.block_seconds / slower))
        return slower

    def quad(self, *, profiled: bool = False) -> Quad:
        """Measures four blocks, beginning with either side by chance.

        Args:
            profiled: with torch's profiler, a single step each: a trace of many fills the memory.

        Returns:
            The four blocks, in the order of their runs.
        """
        steps = 1 if profiled else self.block_steps
        order = self._orders.choice(_ORDERS)
        return Quad([self.block(name, steps, profile=profiled) for name in order])

    def block(self, name: str, steps: int, *, profile: bool = False) -> Block:
        """Lets one side train.

        Args:
            name: the side.
            steps: how many.
            profile: with torch's profiler, whose cost is in the block.

        Returns:
            What was measured.

        Raises:
            RunError: the side died, hung or ended by itself.
        """
        side = self._sides[name]
        began = time.monotonic() - self._began
        self._watch.begin()
        side.ask({"do": "block", "steps": steps, "profile": profile})
        answer = side.answer(self._watch.sample)
        return Block(side=name, began=began, machine=self._watch.end(), **answer)


@contextlib.contextmanager
def open_session(plan: SessionPlan, watch: Watch) -> Iterator[Session]:
    """Starts both trainings, and ends them and whatever they started on leaving.

    Args:
        plan: what is compared.
        watch: of the machine.

    Yields:
        The session.

    Raises:
        RunError: a side could not be started, naming it, with the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix="golden-bench-", ignore_cleanup_errors=True) as name:
        gate = copied_gate(Path(name) / "gate")
        sides: dict[str, _Side] = {}
        try:
            for side in sorted(SIDES, key=lambda side: side != plan.first):
                sides[side] = _Side(side, plan, gate, Path(name))
            yield Session(plan, sides, watch)
        finally:
            for started in sides.values():
                started.ask_to_stop()
            for started in sides.values():
                started.end()


class _Side:
    """One training process and its pipes."""

    def __init__(self, name: str, plan: SessionPlan, gate: Path, folder: Path) -> None:
        self._name = name
        self._timeout = plan.case.timeout
        self._log = plan.logs / f"{name}.log"
        self._received = b""
        temporary = folder / name
        temporary.mkdir()
        job = {
            "target": plan.case.throughput,
            "settings": {**plan.case.settings, **plan.case.paced},
            "lane": plan.lane,
            "fault": plan.fault if name == "head" else None,
        }
        write_atomically(temporary / "job.json", encode_json(job))
        plan.logs.mkdir(parents=True, exist_ok=True)
        tree = plan.trees[name]
        environment = {
            **os.environ,
            "PYTHONPATH": revision_path(plan.trees["head"], tree, gate),
            "TMPDIR": str(temporary),
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "validation.throughput.side"),
                    str(temporary / "job.json"),
                ],
                cwd=tree,
                env=environment if lane_of(tree, plan.lane).on_gpus else isolated(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def ask(self, command: Mapping[str, Any]) -> None:
        """Sends a command.

        Args:
            command: what the side reads as JSON.

        Raises:
            RunError: the side is dead.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._failure() from error

    def answer(self, meanwhile: Callable[[], None]) -> dict[str, Any]:
        """Waits for an answer, and calls `meanwhile` several times a second.

        Args:
            meanwhile: what to call.

        Returns:
            The answer.

        Raises:
            RunError: the side died, or did not answer within the case's timeout.
        """
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + self._timeout
        while b"\n" not in self._received:
            if not select.select([descriptor], [], [], _SAMPLE_SECONDS)[0]:
                meanwhile()
                if time.monotonic() > deadline:
                    raise RunError(f"the {self._name} did not answer within {self._timeout:g} s")
                continue
            content = os.read(descriptor, 65536)
            if not content:
                raise self._failure()
            self._received += content
        line, _, self._received = self._received.partition(b"\n")
        return dict(json.loads(line))

    def ask_to_stop(self) -> None:
        """Asks a living side to end its training."""
        with contextlib.suppress(RunError):
            self.ask({"do": "stop"})

    def end(self) -> None:
        """Waits for the end, then insists; helpers that the side left behind end too."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _failure(self) -> RunError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        lines = self._log.read_text(errors="replace").splitlines()[-_LOG_TAIL:]
        code = self._process.poll()
        ended = "closed its pipe" if code is None else f"ended with exit code {code}"
        return RunError("\n".join([f"the training of the {self._name} {ended}", *lines]))
