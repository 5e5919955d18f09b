"""The protocol between a training and who paces it, without processes."""

import contextlib
import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

from validation.throughput.pacer import Pacer, TrainingStoppedError


class FakeMeter:
    """Counts what is asked of it."""

    def __init__(self) -> None:
        self.resets = 0

    def synchronise(self) -> None:
        """Nothing is queued."""

    def reset_peak(self) -> None:
        """Counted."""
        self.resets += 1

    def peak_bytes(self) -> int:
        """The number of resets."""
        return self.resets

    def reference(self) -> float:
        """Always the same."""
        return 0.5

    def mark(self, marks: list[Any]) -> None:
        """Their numbers, squared."""
        marks.append(float(len(marks)) ** 2)

    def laps(self, marks: list[Any]) -> list[float]:
        """The differences."""
        return [end - start for start, end in itertools.pairwise(marks)]

    @contextlib.contextmanager
    def span(self, spans: list[Any]) -> Iterator[None]:
        """A second each."""
        yield
        spans.append(1.0)

    def seconds(self, spans: list[Any]) -> float:
        """Their sum."""
        return float(sum(spans))

    @contextlib.contextmanager
    def profile(self, operators: dict[str, float]) -> Iterator[None]:
        """One operator."""
        yield
        operators["mm"] = 2.0

    def describe(self) -> dict[str, Any]:
        """One fact."""
        return {"device": "fake"}


def train(*commands: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Answers to commands, and the number of steps that ran; a training without end."""
    answers, steps = io.StringIO(), 0
    lines = "".join(json.dumps(command) + "\n" for command in commands)
    pacer = Pacer(io.StringIO(lines), answers, FakeMeter())
    pacer.describe(flops_per_token=6)
    with pacer.optimizer():  # outside of any block: counted nowhere
        pacer.tokens(100)
    try:
        while True:
            pacer.before_step()
            steps += 1
            pacer.tokens(10)
            with pacer.optimizer():
                pass
    except TrainingStoppedError:
        return [json.loads(line) for line in answers.getvalue().splitlines()], steps


def block(steps: int, profile: bool = False) -> dict[str, Any]:
    """A command."""
    return {"do": "block", "steps": steps, "profile": profile}


def test_blocks_have_the_steps_they_were_given() -> None:
    answers, steps = train(block(3), block(1), block(2, profile=True), {"do": "stop"})
    assert steps == 6
    ready, *blocks = answers
    assert ready == {"ready": {"device": "fake", "flops_per_token": 6}}
    assert [b["steps"] for b in blocks] == [3, 1, 2]
    assert [b["laps"] for b in blocks] == [[1, 3, 5], [1], [1, 3]]
    assert [b["tokens"] for b in blocks] == [30, 10, 20]
    assert [b["optimizer_seconds"] for b in blocks] == [3, 1, 2]
    assert [b["peak_bytes"] for b in blocks] == [1, 2, 3]
    assert [b["operators"] for b in blocks] == [None, None, {"mm": 2.0}]
    assert all(b["seconds"] > 0 and b["reference_seconds"] == 0.5 for b in blocks)


def test_the_end_of_the_commands_ends_the_training() -> None:
    assert train()[1] == 0
    answers, steps = train(block(2))
    assert (len(answers), steps) == (2, 2)
