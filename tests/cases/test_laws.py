"""The laws of the built model: they hold, and each is broken by the bug that it is there for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from validation.cases import discover_cases, discover_faults
from validation.running.execution import RunOptions, run_case
from validation.running.source import find_root
from validation.trace import HeldInvariant, Trace

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="runs in the CPU lane")


def broken_laws(trace: Trace) -> set[str]:
    values = [event.value for event in trace.events]
    return {v.name for v in values if isinstance(v, HeldInvariant) and not v.holds}


@pytest.mark.parametrize(
    ("fault", "laws"),
    [
        (None, set()),
        ("documents-mixed-in-the-kernel", {"packing"}),
        ("window-plus-one", {"outputs forget what is beyond the window"}),
        ("last-token-dropped", {"permutation", "accumulation"}),
    ],
)
def test_laws(fault: str | None, laws: set[str], tmp_path: Path) -> None:
    plant = None if fault is None else discover_faults(find_root())[fault].plant
    options = RunOptions(lane="cpu", fault=plant, settings={"perturb_seed": 3})
    trace = run_case(
        discover_cases(find_root())["laws"], options, find_root(), tmp_path / "log.txt"
    )
    found = broken_laws(trace)
    assert laws <= found
    assert bool(found) is bool(laws)
