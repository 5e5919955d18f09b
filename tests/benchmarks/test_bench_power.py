"""The switch between the experiments of `benchmarks.bench_power`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import bench_power


def test_the_switch_of_bench_power_is_read_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[Callable[[], float]] = []
    switch = tmp_path / "share"
    monkeypatch.setenv("VPMOE_BENCH_POWER_SWITCH", str(switch))
    monkeypatch.setattr(bench_power, "slower", readers.append)
    bench_power._set_switch(switch, 0.0)
    bench_power.switched()
    (read,) = readers
    shares = []
    for share in (0.0, 0.03, 0.01, 0.0):
        bench_power._set_switch(switch, share)
        shares.append(read())
    assert shares == [0.0, 0.03, 0.01, 0.0]
