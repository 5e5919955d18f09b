"""Accepting part of a change: a lane whose golden the change affects must come along."""

from dataclasses import replace
from pathlib import Path

import pytest

from validation.cases import Case
from validation.goldens import Golden, GoldenStore
from validation.goldens.acceptance import RefusedError, propose, refuse_missing_lanes

from .traces import random_trace, tolerances_of


def test_a_missing_affected_lane_is_named(tmp_path: Path) -> None:
    store = GoldenStore(tmp_path / "goldens")
    trace = random_trace(1)
    for lane in ("cpu", "h200"):
        tolerances = tolerances_of(trace)
        golden = Golden(lane=lane, trace=trace, case_digest="", accepted={}, tolerances=tolerances)
        store.save(golden)
    cases = {"tiny": Case(name="tiny", description="", lanes=["cpu", "h200"], target="a:b")}
    loss = {step: 2 * value for step, value in trace.curves["lm_loss"].items()}
    moved = replace(trace, curves={**trace.curves, "lm_loss": loss})
    both = [propose(store, lane, moved) for lane in ("cpu", "h200")]
    refuse_missing_lanes(store, both, cases)
    with pytest.raises(RefusedError, match=r"tiny.*lane h200"):
        refuse_missing_lanes(store, both[:1], cases)
    unchanged = propose(store, "cpu", trace)
    refuse_missing_lanes(store, [unchanged], cases)
