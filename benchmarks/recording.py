"""What recording costs: steps of vpmoe-tiny with and without the observation, in one process.

    python -m benchmarks.recording [--steps 12] [--rounds 3]

Rounds alternate plain and observed trainings; the first steps, which `tiny_moe` traces whole, are
listed apart. Times are wall-clock seconds of Megatron's `train_step` and what is observed around
it; medians, spread (p90 - p10) / median.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from validation.running.recorder import Recorder
from vpmoe.cases.observe import observe_training
from vpmoe.cases.training import build_data
from vpmoe.pretrain import main as pretrain
from vpmoe.runtime import detect_lane
from vpmoe.runtime.patches import replaced

TRACED = (1, 2)


@contextlib.contextmanager
def timed(times: list[float]) -> Iterator[None]:
    """Collects the start of every step, as seen from outside the observation."""
    import megatron.training.training as training

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def train_step(*args: Any, **kwargs: Any) -> Any:
            times.append(time.perf_counter())
            return original(*args, **kwargs)

        return train_step

    with replaced(training, "train_step", wrap(training.train_step)):
        yield


def train(data: Path, steps: int, observed: bool) -> list[float]:
    """Seconds of every step but the last, with its logging."""
    flags = ["--config", "configs/vpmoe-tiny.toml", "--synth-kd-data", str(data)]
    times: list[float] = []
    recorder = Recorder(steps=TRACED)
    watch = observe_training(recorder) if observed else contextlib.nullcontext()
    with watch, timed(times), contextlib.redirect_stdout(io.StringIO()):
        pretrain([*flags, "--train-iters", str(steps + 1)])
    return [after - before for before, after in itertools.pairwise(times)]


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[tuple[bool, bool], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, detect_lane().activate():
        settings = {"conversations": "data/sample/conversations.jsonl"}
        data = build_data(Recorder(), settings, Path(folder) / "data")
        train(data, 2, False)
        for _ in range(options.rounds):
            for observed in (False, True):
                seconds = train(data, options.steps, observed)
                for step, value in enumerate(seconds, start=1):
                    found.setdefault((step in TRACED, observed), []).append(value)
    print("| steps | plain, s | observed, s | overhead |\n| --- | --- | --- | --- |")
    for traced in (False, True):
        cells = []
        for observed in (False, True):
            values = sorted(found[traced, observed])
            middle = statistics.median(values)
            spread = (values[-1 - len(values) // 10] - values[len(values) // 10]) / middle
            cells.append((middle, spread))
        (plain, a), (seen, b) = cells
        name = "traced (1, 2)" if traced else "others"
        print(f"| {name} | {plain:.3f} +-{a:.0%} | {seen:.3f} +-{b:.0%} | {seen / plain - 1:.1%} |")


if __name__ == "__main__":
    main()
