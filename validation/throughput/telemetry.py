"""What the machine did while blocks ran, and whether it was fit to measure on.

Each watch samples during a block; `unfit` reads the samples of a run and names what disturbed it:
slowed clocks or another process. A disturbed run is UNFIT: it says nothing about the code.
"""

from __future__ import annotations

import contextlib
import importlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from validation.config import Lane
from validation.running.execution import RunError
from validation.throughput.session import Watch

MAX_NEIGHBOURS = 0.1
"""Share of the CPU time that other processes, or other virtual machines, may use on average."""

# NVML's bits of clock event reasons that mean a slowdown. A power cap is how a busy card runs.
_THROTTLES = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
# More than a driver and an idle display take.
_IDLE_BYTES = 2**30


class CpuWatch(Watch):
    """Load, steal, and the CPU time that is not of this process and its children, the trainings."""

    def __init__(self) -> None:
        self._before = (0.0, 0.0, 0.0, 0.0)

    def begin(self) -> None:
        """Reads the counters."""
        self._before = _cpu_seconds()

    def end(self) -> dict[str, Any]:
        """Shares of all CPUs' time during the block."""
        wall, busy, steal, own = (
            after - before for after, before in zip(_cpu_seconds(), self._before, strict=True)
        )
        total = max(wall, 1e-9) * (psutil.cpu_count() or 1)
        return {
            "neighbours": max(0.0, busy - own) / total,
            "own": own / total,
            "steal": steal / total,
            "load": psutil.getloadavg()[0],
        }


def _cpu_seconds() -> tuple[float, float, float, float]:
    """Seconds until now: wall, busy, stolen by other virtual machines, own."""
    times = psutil.cpu_times()
    busy = times.user + times.nice + times.system + times.irq + times.softirq
    own, me = 0.0, psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it may end meanwhile
            used = process.cpu_times()
            own += used.user + used.system
    return time.monotonic(), busy, getattr(times, "steal", 0.0), own


class GpuWatch(Watch):
    """One card through NVML: clocks, power, temperature, throttling, memory, other processes.

    Args:
        nvml: the module `pynvml`, or a fake of it in a test.
    """

    def __init__(self, nvml: Any = None) -> None:
        if nvml is None:
            nvml = importlib.import_module("pynvml")
        self._nvml = nvml
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
        self._cards = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        # Process ids of a container are not NVML's: what is there before the trainings is foreign.
        self._strangers = [self._processes(card) for card in self._cards]
        memory = [self._ask("nvmlDeviceGetMemoryInfo", card) for card in self._cards]
        self._used = [0 if entry is None else int(entry.used) for entry in memory]
        self._card, self._place = self._cards[0], 0
        self._own: set[int] = set()
        self._samples: list[dict[str, Any]] = []

    def started(self, pids: Sequence[int], facts: Mapping[str, Any]) -> None:
        """Finds the trainings' card, and takes as many new processes on it as there are."""
        uuid = str(facts.get("device_uuid") or "")
        for place, card in enumerate(self._cards):
            name = self._nvml.nvmlDeviceGetUUID(card)
            if uuid and uuid in (name.decode() if isinstance(name, bytes) else str(name)):
                self._card, self._place = card, place
        new = self._processes(self._card) - self._strangers[self._place]
        mine = new & set(pids)
        self._own = mine or set(sorted(new)[: len(pids)])

    def begin(self) -> None:
        """Starts a list of samples."""
        self._samples = []

    def sample(self) -> None:
        """Reads the card once."""
        nvml, card = self._nvml, self._card
        busy = self._ask("nvmlDeviceGetUtilizationRates", card)
        used = self._ask("nvmlDeviceGetMemoryInfo", card)
        power = self._ask("nvmlDeviceGetPowerUsage", card)
        self._samples.append(
            {
                "sm_mhz": self._ask("nvmlDeviceGetClockInfo", card, nvml.NVML_CLOCK_SM),
                "memory_mhz": self._ask("nvmlDeviceGetClockInfo", card, nvml.NVML_CLOCK_MEM),
                "watts": None if power is None else power / 1000.0,
                "celsius": self._ask("nvmlDeviceGetTemperature", card, nvml.NVML_TEMPERATURE_GPU),
                "utilisation": None if busy is None else busy.gpu / 100.0,
                "memory_bytes": None if used is None else int(used.used),
                "reasons": self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", card),
                "strangers": len(self._processes(card) - self._own),
            }
        )

    def end(self) -> dict[str, Any]:
        """Means of the samples; throttle reasons and strangers of any; None for what is hidden."""
        self.sample()
        figures: dict[str, Any] = {}
        for name in ("sm_mhz", "memory_mhz", "watts", "celsius", "utilisation"):
            known = [s[name] for s in self._samples if s[name] is not None]
            figures[name] = statistics.fmean(known) if known else None
        reasons = 0
        for sample in self._samples:
            reasons |= int(sample["reasons"] or 0)
        return figures | {
            "memory_bytes": max(s["memory_bytes"] or 0 for s in self._samples) or None,
            "memory_before_bytes": self._used[self._place],
            "reasons": reasons,
            "strangers": max(s["strangers"] for s in self._samples),
        }

    def _processes(self, card: Any) -> set[int]:
        found = self._ask("nvmlDeviceGetComputeRunningProcesses", card)
        return {process.pid for process in found or ()}

    def _ask(self, name: str, *words: Any) -> Any:
        """One reading; None where this card or container does not give it."""
        try:
            return getattr(self._nvml, name)(*words)
        except self._nvml.NVMLError:
            return None


def watch_for(lane: Lane) -> Watch:
    """Chooses the watch for a lane's kind of machine.

    Args:
        lane: the lane.

    Returns:
        The watch.

    Raises:
        RunError: the lane has GPUs and nothing tells how they are.
    """
    if not lane.on_gpus:
        return CpuWatch()
    try:
        return GpuWatch()
    except Exception as error:  # pynvml's own class of errors exists only where pynvml does
        raise RunError(
            f"lane {lane.name}: the card cannot be watched ({error}); NVML and nvidia-ml-py "
            "are needed"
        ) from error


def unfit(
    machine: Sequence[Mapping[str, Any]], max_neighbours: float = MAX_NEIGHBOURS
) -> list[str]:
    """Says why a run proves nothing about the code.

    Args:
        machine: what a watch saw, one entry a block.
        max_neighbours: share of the CPU time that others may use on average.

    Returns:
        The reasons; empty when there is none.
    """
    reasons = []
    shares = [(entry["neighbours"], entry["steal"]) for entry in machine if "steal" in entry]
    if shares:
        neighbours, steal = (statistics.fmean(column) for column in zip(*shares, strict=True))
        if neighbours + steal > max_neighbours:
            reasons.append(
                f"others used {neighbours + steal:.1%} of the CPU time ({neighbours:.1%} processes "
                f"beside the trainings, {steal:.1%} other virtual machines), more than "
                f"{max_neighbours:.1%}"
            )
    for bit, name in _THROTTLES.items():
        slowed = sum(bool(entry.get("reasons", 0) & bit) for entry in machine)
        if slowed:
            reasons.append(f"the card reported {name} in {slowed} of {len(machine)} blocks")
    strangers = max((entry.get("strangers", 0) for entry in machine), default=0)
    if strangers:
        reasons.append(f"{strangers} other process(es) computed on the card")
    before = max((entry.get("memory_before_bytes", 0) for entry in machine), default=0)
    if before > _IDLE_BYTES and not strangers:
        reasons.append(f"{before / 2**30:.1f} GiB of the card were in use before the run")
    return reasons
