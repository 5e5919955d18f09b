"""One side of a comparison: `python -m validation.throughput.side JOB.json` in a checkout.

Runs a case's `throughput` function with a pacer on stdin and stdout, until it is told to stop.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path

from validation.environment import describe
from validation.files import decode_json, read_file
from validation.throughput.meter import CpuMeter, CudaMeter
from validation.throughput.pacer import Meter, Pacer, TrainingStoppedError, take_pipes
from validation.warm import die_with_parent
from validation.worker import resolve


def main(argv: list[str] | None = None) -> int:
    """Trains until stopped; returns 0, or 1 when the training ended by itself."""
    (job_file,) = sys.argv[1:] if argv is None else argv
    path = Path(job_file)
    job = decode_json(read_file(path), path)
    die_with_parent(signal.SIGKILL)
    commands, answers = take_pipes()
    meter: Meter = CpuMeter() if job["lane"] == "cpu" else CudaMeter()
    pacer = Pacer(commands, answers, meter)
    pacer.describe(environment=describe(job["lane"]))
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
