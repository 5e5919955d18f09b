"""Runs `vpmoe pretrain` several times from one warm process: python warm_runs.py PLAN.json

PLAN.json is a list of {"flags": [...], "out": FILE}. Megatron is imported once; every run is a
fork of that process. A run leaves in `out` its exit code, the error if it raised one, the exact
loss, gradient norm and learning rate of every step, and the lines that the training log printed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from vpmoe.runtime import detect_lane
from vpmoe.runtime.patches import replaced


def run(flags: list[str], out: Path) -> None:
    """One run, in this process."""
    import megatron.training.training as training
    import torch

    from vpmoe.pretrain import main

    curve: list[dict[str, Any]] = []
    lines: list[str] = []
    log, show = training.training_log, training.print_rank_last

    def recording_print(line: str) -> None:
        lines.append(line)
        show(line)

    def recording_log(losses: Any, total: Any, *args: Any, **kwargs: Any) -> Any:
        loss = losses["lm loss"].item() if losses else None
        curve.append({"lm_loss": loss, "learning_rate": args[0], "grad_norm": float(args[5])})
        return log(losses, total, *args, **kwargs)

    result: dict[str, Any] = {"curve": curve, "lines": lines, "error": None, "code": None}
    try:
        with (
            replaced(training, "training_log", recording_log),
            replaced(training, "print_rank_last", recording_print),
        ):
            result["code"] = main(flags)
    except SystemExit as stop:
        result["code"] = stop.code
    except Exception as error:
        traceback.print_exc()
        result["error"] = f"{type(error).__name__}: {error}"
    result["deterministic"] = torch.are_deterministic_algorithms_enabled()
    result["type"] = torch.ones(1).type()
    out.write_text(json.dumps(result))


def main() -> None:
    """Imports Megatron in the lane, then forks for each run of the plan."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    with detect_lane().activate():
        importlib.import_module("megatron.training.training")

    for entry in plan:
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            try:
                run(entry["flags"], Path(entry["out"]))
            finally:
                sys.stdout.flush()
                os._exit(0)
        os.waitpid(child, 0)
        # What the run spawned (a checkpoint writer) holds our output open and would outlive it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)


if __name__ == "__main__":
    main()
