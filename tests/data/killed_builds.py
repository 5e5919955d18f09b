"""Builds that are killed with SIGKILL at random and started again: `killed_builds.py PLAN.json`.

A process of its own, so that what forks is small and has no threads: the plan names input, output,
vocabulary and how often to kill. Prints the number of kills that hit an unfinished build.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

from vpmoe.data import rows
from vpmoe.data.build import build_dataset
from vpmoe.tokenizer import O200kHarmonyTokenizer


def main() -> None:
    """Kills and restarts until the plan is met, then lets the build finish."""
    plan: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    rows._BLOCK_BYTES = plan["block_bytes"]
    O200kHarmonyTokenizer(plan["vocabulary"])  # loads what every child would load again
    random = Random(plan["seed"])
    kills = finished = 0
    while kills < plan["kills"]:
        output = Path(plan["output"]) / f"build-{finished}"
        workers = (1, 2, 4)[kills % 3]
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            _build(plan, output, workers)
            os._exit(0)
        time.sleep(random.uniform(0.0, plan["seconds"]))
        if (output / "manifest.json").exists():
            finished += 1
        else:
            kills += 1
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    for number in range(finished + 1):
        _build(plan, Path(plan["output"]) / f"build-{number}", 2)
    print(json.dumps({"kills": kills, "builds": finished + 1}))


def _build(plan: dict[str, Any], output: Path, workers: int) -> None:
    build_dataset(
        plan["inputs"],
        output,
        workers=workers,
        valid_fraction="0.2",
        rows_per_shard=150,
        vocabulary=plan["vocabulary"],
        checkpoint_seconds=0.0,
    )


if __name__ == "__main__":
    main()
