"""One process of a case's run: `python -m validation.worker JOB.json`.

Started by `validation.execution`; each rank writes its own trace folder into the job's output.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from validation.environment import describe
from validation.files import decode_json, read_file
from validation.recorder import Recorder
from validation.trace import save_trace


def resolve(name: str) -> Any:
    """The object that `module:attribute` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def main(argv: list[str] | None = None) -> int:
    """Runs the target of a job in this process, its fault planted, and saves the trace."""
    (job_file,) = sys.argv[1:] if argv is None else argv
    path = Path(job_file)
    job = decode_json(read_file(path), path)
    rank = int(os.environ.get("RANK", "0"))
    recorder = Recorder(rank=rank, steps=job["traced_steps"])
    fault = job.get("fault")
    with resolve(fault)() if fault else contextlib.nullcontext():
        resolve(job["target"])(recorder, job["settings"])
    environment = describe(job["lane"], int(os.environ.get("WORLD_SIZE", "1")))
    trace = recorder.trace(job["case"], {"environment": environment})
    save_trace(trace, Path(job["output"]) / f"rank{rank}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
