"""NorMuon against AdamW on vpmoe-tiny: the loss of 200 steps, each with its best learning rate.

    python -m benchmarks.optimizer_loss --synth-kd-data DIR [--steps 200] [--out FOLDER]

Both take the same five learning rates; NorMuon's AdamW part keeps the preset's. The figure is the
first step at which NorMuon's smoothed loss is at or below AdamW's best final one, as a share of all
steps. Each run is `vpmoe pretrain` in a process of its own; a finished run is not repeated.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
from pathlib import Path

RATES = ("1e-3", "3e-3", "1e-2", "3e-2", "1e-1")
_WINDOW = 10
_STEP = re.compile(r"iteration +(\d+)/.*?lm loss: ([0-9.E+-]+|nan)")


def train(optimizer: str, rate: str, options: argparse.Namespace) -> list[float]:
    """The loss of every step of one run."""
    log = options.out / f"{optimizer}-{rate}-{options.steps}.log"
    if not log.exists():
        flags = ["--config", str(options.config), "--synth-kd-data", str(options.synth_kd_data)]
        flags += ["--train-iters", str(options.steps), "--lr-decay-iters", str(options.steps)]
        flags += ["--optimizer", optimizer, "--lr", rate, "--min-lr", str(float(rate) / 10)]
        if optimizer == "normuon":
            flags += ["--normuon-aux-lr", "1e-2", "--normuon-aux-min-lr", "1e-3"]
        options.out.mkdir(parents=True, exist_ok=True)
        unfinished = log.with_suffix(".part")
        with unfinished.open("w") as file:
            words = [sys.executable, "-m", "vpmoe.cli", "pretrain", *flags]
            subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, check=True)
        unfinished.rename(log)
    losses = [float(match[2]) for match in _STEP.finditer(log.read_text())]
    if len(losses) != options.steps:
        raise RuntimeError(f"{log}: {len(losses)} losses, expected {options.steps}")
    return losses


def smoothed(losses: list[float]) -> list[float]:
    """Mean of the last steps, at every step."""
    return [statistics.fmean(losses[max(0, i - _WINDOW + 1) : i + 1]) for i in range(len(losses))]


def main() -> None:
    """Prints one table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--synth-kd-data", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/vpmoe-tiny.toml"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/optimizer_loss"))
    options = parser.parse_args()
    curves = {
        (optimizer, rate): smoothed(train(optimizer, rate, options))
        for optimizer in ("adam", "normuon")
        for rate in RATES
    }
    print("| lr | AdamW | NorMuon |\n| --- | --- | --- |")
    for rate in RATES:
        adam, normuon = (curves[name, rate][-1] for name in ("adam", "normuon"))
        print(f"| {rate} | {adam:.4f} | {normuon:.4f} |")
    goal = min(curves["adam", rate][-1] for rate in RATES)
    steps = [
        next((i + 1 for i, loss in enumerate(curves["normuon", rate]) if loss <= goal), None)
        for rate in RATES
    ]
    reached = [step for step in steps if step is not None]
    if reached:
        share = min(reached) / options.steps
        print(f"\nNorMuon reaches {goal:.4f} after {min(reached)} steps, {share:.0%} of AdamW's")
    else:
        print(f"\nNorMuon does not reach AdamW's {goal:.4f} in {options.steps} steps")


if __name__ == "__main__":
    main()
