"""One process of a case's run: `python -m validation.running.worker JOB.json`.

Started by `validation.running.execution`; each rank writes its own trace folder into the job's
output.
"""

from __future__ import annotations

import contextlib
import importlib
import operator
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from validation.arithmetic import arithmetic
from validation.config import Lane
from validation.config.python_path import real_entries
from validation.files import decode_json, read_file
from validation.isolation import explain_hidden
from validation.running.environment import describe
from validation.running.recorder import Recorder
from validation.running.reseed import reseeded
from validation.trace import save_trace


def resolve(name: str) -> Any:
    """The object that `module:attribute` names; dots reach into the attribute."""
    module, _, attribute = name.partition(":")
    return operator.attrgetter(attribute)(importlib.import_module(module))


def main(argv: list[str] | None = None) -> int:
    """Runs the target of a job in this process, its faults planted, and saves the trace."""
    real_entries()
    (job_file,) = sys.argv[1:] if argv is None else argv
    path = Path(job_file)
    job = decode_json(read_file(path), path)
    rank = int(os.environ.get("RANK", "0"))
    recorder = Recorder(rank=rank, steps=job["traced_steps"])
    with contextlib.ExitStack() as planted:
        if job.get("coverage") is not None:
            from validation.running.measured import measuring

            planted.enter_context(measuring(Path(job["coverage"])))
        counts = planted.enter_context(arithmetic(job["arithmetic"], job["rounding_seed"]))
        planted.enter_context(reseeded(job["nonce"]))
        try:
            for fault in job["faults"]:
                planted.enter_context(resolve(fault)())
            resolve(job["target"])(recorder, job["settings"])
        except ModuleNotFoundError as error:
            explain_hidden(error)
            raise
    if job["arithmetic"] != "native" or job["rounding_seed"] is not None:
        recorder.note("arithmetic", asdict(counts))
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    environment = describe(Lane(**job["lane"]), ranks, job["arithmetic"])
    trace = recorder.trace(job["case"], {"environment": environment})
    save_trace(trace, Path(job["output"]) / f"rank{rank}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
