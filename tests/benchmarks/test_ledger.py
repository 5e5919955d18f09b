"""Threads of the long benchmarks: each has its own cores, and so have the processes it starts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from benchmarks.ledger import core_shares, in_parallel

CORES = os.sched_getaffinity(0)


@pytest.mark.parametrize("jobs", [1, 2, len(CORES), len(CORES) + 3])
def test_shares_are_equal_and_apart(jobs: int) -> None:
    shares = core_shares(jobs)
    assert len(shares) == min(jobs, len(CORES))
    assert len({len(share) for share in shares}) == 1
    assert sum(len(share) for share in shares) == len(set().union(*shares)) <= len(CORES)


def test_processes_of_a_job_run_on_its_share() -> None:
    seen: list[set[int]] = []
    together = threading.Barrier(min(2, len(CORES)))

    def work(_: int) -> None:
        together.wait(60)
        script = "import os; print(*os.sched_getaffinity(0))"
        said = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        seen.append({int(core) for core in said.stdout.split()})

    in_parallel(together.parties, range(together.parties), work)
    assert sorted(map(sorted, seen)) == sorted(map(sorted, core_shares(together.parties)))
    assert os.sched_getaffinity(0) == CORES
