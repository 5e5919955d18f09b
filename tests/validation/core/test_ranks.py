"""Runs of several ranks, runs that fail or hang, and a comparator that no longer compares."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from validation.cases import Case
from validation.running.execution import RunError, RunOptions, run_case
from validation.trace import CurveKey

ADAPTER = """
import os
import sys
import time
import torch
import torch.distributed as dist

def run(recorder, settings):
    rank, size = recorder.rank, int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=size)
    for step in (1, 2):
        if settings.get("fails") == rank and step == 2:
            print("no memory left on this rank")
            sys.exit(7)
        if "fails" in settings and step == 2:
            time.sleep(20)  # the other rank does not fail in its wake
        if settings.get("hangs") == rank and step == 2:
            time.sleep(600)
        value = torch.full((3,), float(rank + step))
        recorder.tensor(step=step, micro_batch=0, phase="backward", module="layer",
                        tensor="grad", value=value)
        dist.all_reduce(value)
        recorder.tensor(step=step, micro_batch=0, phase="reduction", module="layer",
                        tensor="grad", value=value)
        recorder.curve(step, "lm_loss", value[0].item() + rank)
    dist.destroy_process_group()
"""

SABOTAGED = """
import sys
import validation.gate.canary as canary
import validation.gate.check as check
right = check.compare
def equal(golden, trace, *rest, **more):
    return right(golden, golden, *rest, **more)
check.compare = canary.compare = equal
from validation.cli.program import main
sys.exit(main(["check", "--json"]))
"""


def two_ranks(folder: Path, timeout: float = 120.0, **settings: int) -> tuple[Case, Path]:
    """A gloo case of two processes, and the log of its run."""
    (folder / "rank_adapter.py").write_text(ADAPTER)
    case = Case(
        name="ranks",
        description="two ranks reduce",
        lanes=["cpu"],
        target="rank_adapter:run",
        settings=settings,
        processes=2,
        traced_steps=[1, 2],
        timeout=timeout,
    )
    return case, folder / "log.txt"


def test_two_ranks_leave_one_trace(tmp_path: Path) -> None:
    case, log = two_ranks(tmp_path)
    trace = run_case(case, RunOptions(lane="cpu"), tmp_path, log)
    assert trace.curves == {
        CurveKey("lm_loss"): {1: 3.0, 2: 5.0},
        CurveKey("lm_loss", 1): {1: 4.0, 2: 6.0},
    }
    places = [(e.key.step, e.key.rank, e.key.phase) for e in trace.events]
    assert places == [
        (step, rank, phase)
        for step in (1, 2)
        for rank in (0, 1)
        for phase in ("backward", "reduction")
    ]
    reduced = {e.key.rank: e.value for e in trace.events if e.key.phase == "reduction"}
    assert reduced[0] == reduced[1], "an all-reduce leaves the same sum everywhere"
    own = {e.key.rank: e.value for e in trace.events if e.key.phase == "backward"}
    assert own[0] != own[1]


def test_a_failing_rank_ends_the_run_and_is_named(tmp_path: Path) -> None:
    case, log = two_ranks(tmp_path, fails=1)
    with pytest.raises(RunError, match="rank 1 ended with exit code 7") as caught:
        run_case(case, RunOptions(lane="cpu"), tmp_path, log)
    assert "no memory left on this rank" in str(caught.value), "the end of the log"


def test_a_run_that_hangs_is_stopped(tmp_path: Path) -> None:
    case, log = two_ranks(tmp_path, timeout=6.0, hangs=0)
    began = time.monotonic()
    with pytest.raises(RunError, match="stopped after 6 s"):
        run_case(case, RunOptions(lane="cpu"), tmp_path, log)
    assert time.monotonic() - began < 300, "it sleeps for 600 s"


def test_a_comparator_that_finds_everything_equal_is_found_out(golden_project: Any) -> None:
    project = golden_project
    done = subprocess.run(
        [sys.executable, "-c", SABOTAGED],
        cwd=project.root,
        env=project.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert '"verdict": "INVALID"' in done.stdout
    assert '"caught": false' in done.stdout
