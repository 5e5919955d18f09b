"""The training benchmark's arithmetic: flags, components, figures, tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

from benchmarks import train_components, train_show
from benchmarks.train_components import COMPONENTS, Components
from benchmarks.train_models import MODELS, RANKS, flags_of


def values(flags: list[str], flag: str) -> list[str]:
    """What follows a flag, wherever it stands."""
    return [flags[i + 1] for i, word in enumerate(flags) if word == flag]


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_the_presets_sizes(model: str, repository: Path) -> None:
    config = repository / "configs" / "vpmoe-6b.toml"
    flags = flags_of(model, config, 8, 16384, Path("data"), ["--seed", "7"])
    for flag, value in {
        "--num-layers": "8",
        "--hidden-size": "1024",
        "--num-experts": "256",
        "--moe-layer-freq": "([0]+[1]*7)",
        "--micro-batch-size": "8",
        "--global-batch-size": str(8 * RANKS.get(model, 1)),
        "--synth-kd-data": "data",
    }.items():
        assert values(flags, flag) == [value]
    assert flags[-2:] == ["--seed", "7"]
    stock = model.startswith("stock")
    assert ("--use-tpa" in flags) is not stock
    assert ("--moe-grouped-gemm" in flags) is stock
    assert values(flags, "--optimizer") == ["adam" if stock else "normuon"]
    window = {"stock": [], "stock-window": ["127,0"]}.get(model, ["128"])
    assert values(flags, "--window-size") == window
    assert bool(values(flags, "--softmax-type")) is (model != "stock")


def test_tokens_must_be_whole_sequences(repository: Path) -> None:
    with pytest.raises(ValueError, match="no whole sequences of 2048"):
        flags_of("vpmoe", repository / "configs" / "vpmoe-6b.toml", 8, 3000, Path(), [])


def test_components_add_up_to_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a module are not counted twice, and what is left is `other`."""
    clock = iter(range(100))
    monkeypatch.setattr(train_components.time, "perf_counter", lambda: float(next(clock)))

    class Handle:
        def remove(self) -> None:
            """Nothing hangs."""

    components = Components()
    components._handles.append(Handle())
    with components.span("data"):  # 0 to 1
        pass
    with components.span("layers"):  # 2 to 11
        with components.span("MoE"):  # 3 to 8
            with components.span("router"):  # 4 to 5
                pass
            with components.span("routed experts"):  # 6 to 7
                pass
        with components.span("attention, local"):  # 9 to 10
            pass
    taken = components.take(20.0, 1)
    assert tuple(taken) == COMPONENTS
    assert sum(taken.values()) == 20.0
    assert taken["data"] == taken["router"] == taken["routed experts"] == 1.0
    assert taken["permutation"] == 3.0
    assert taken["norms and residuals"] == 3.0
    assert taken["other"] == 10.0
    components.mark("data")  # the hooks are off: nothing is counted
    assert components.take(0.0, 1)["data"] == 0.0


@dataclass
class Kernel:
    """A profile's event."""

    name: str
    start: float
    seconds: float
    device_type: Any = DeviceType.CUDA

    @property
    def time_range(self) -> Any:
        """As the profiler has it, in microseconds."""
        return SimpleNamespace(start=self.start, elapsed_us=lambda: self.seconds * 1e6)


def test_the_devices_clock_counts_kernels_alone() -> None:
    """In the order in which they ran; gaps, markers and the host's events take no time."""
    events = [
        Kernel("gemm", 70.0, 3.0),
        Kernel("void spin_kernel(long)", 10.0, 0.5),
        Kernel("copy", 20.0, 1.0),
        Kernel("aten::mm", 15.0, 100.0, DeviceType.CPU),
        Kernel("void spin_kernel(long)", 60.0, 0.5),
    ]
    assert train_components._device_clock(events) == ([0.0, 1.0], 4.0)


def result(seconds: list[float]) -> dict[str, Any]:
    """A model's blocks."""
    blocks = [{"seconds": s, "tokens": 100.0, "peak_bytes": 2**30} for s in seconds]
    return {"facts": {"flops_per_token": 5.0}, "blocks": blocks}


def test_figures_and_table() -> None:
    slow, fast = result([1.0, 1.2, 0.8]), result([0.2, 0.2, 0.2])
    fast["components"] = dict.fromkeys(COMPONENTS, 0.01)
    figures = {m: train_show.summary(r, 1000.0) for m, r in {"stock": slow, "vpmoe": fast}.items()}
    assert figures["stock"]["milliseconds"] == pytest.approx(1000)
    assert figures["stock"]["spread"] == pytest.approx(0.4)
    assert figures["vpmoe"]["tokens_per_second"] == pytest.approx(500)
    assert figures["vpmoe"]["mfu"] == pytest.approx(2.5)
    table = train_show.tables({"stock": slow, "vpmoe": fast}, figures)
    assert "| vpMoE | 200.0 | 0.0% | 500 | 5.00 x |" in table
    assert "| router | 10.00 |" in table
    assert "| all that the device computes | 120.00 |" in table
    assert "| device idle | 80.00 |" in table


def test_the_longest_kernels_are_kept_with_the_time_of_all() -> None:
    """The host's entries, which span kernels, are none of them."""
    operators = {"Optimizer.step#NorMuon.step": 9.0} | {f"kernel {i}": 1.0 + i for i in range(30)}
    kept = train_show.longest(operators)
    assert kept["all kernels"] == sum(range(1, 31))
    assert list(kept)[1:3] == ["kernel 29", "kernel 28"]
    assert len(kept) == 26
    table = train_show.kernels({"vpmoe": {"operators": kept}}, "vpmoe")
    assert "| `kernel 29` | 30000.00 | 6.5% |" in table
