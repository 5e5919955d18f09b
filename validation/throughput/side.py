"""One side of a comparison: `python -m validation.throughput.side JOB.json` in a checkout.

Runs a case's `throughput` function with a pacer on stdin and stdout, until it is told to stop.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path

from validation.config import lane_of
from validation.files import decode_json, read_file
from validation.running.environment import describe
from validation.running.warm import die_with_parent
from validation.running.worker import resolve
from validation.throughput.meter import CpuMeter, CudaMeter
from validation.throughput.pacer import Meter, Pacer, TrainingStoppedError, take_pipes


def main(argv: list[str] | None = None) -> int:
    """Trains until stopped; returns 0, or 1 when the training ended by itself."""
    (job_file,) = sys.argv[1:] if argv is None else argv
    path = Path(job_file)
    job = decode_json(read_file(path), path)
    die_with_parent(signal.SIGKILL)
    commands, answers = take_pipes()
    lane = lane_of(Path.cwd(), job["lane"])
    meter: Meter = CudaMeter() if lane.on_gpus else CpuMeter()
    pacer = Pacer(commands, answers, meter)
    pacer.describe(environment=describe(lane))
    fault = job["fault"]
    try:
        with resolve(fault)() if fault else contextlib.nullcontext():
            resolve(job["target"])(pacer, job["settings"])
    except TrainingStoppedError:
        return 0
    print("the training ended by itself; it must go on until the pacer stops it")
    return 1


if __name__ == "__main__":
    sys.exit(main())
