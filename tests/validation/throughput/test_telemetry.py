"""A card as NVML shows it, imitated: what makes a machine unfit, and what does not."""

from types import SimpleNamespace
from typing import Any

import pytest

from validation.throughput.telemetry import CpuWatch, GpuWatch, unfit


class FakeNvml:
    """The part of `pynvml` that is read, for two cards."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = "sm", "memory", "gpu"

    class NVMLError(Exception):
        """As pynvml's."""

    def __init__(self) -> None:
        self.processes: dict[int, set[int]] = {0: set(), 1: set()}
        self.reasons = 0x4  # a power cap, as on any busy card
        self.used = 2**29

    def nvmlInit(self) -> None:  # noqa: N802
        """Nothing to do."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, card: int) -> bytes:  # noqa: N802
        return b"GPU-aaaa-%d" % card

    def nvmlDeviceGetComputeRunningProcesses(self, card: int) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid) for pid in self.processes[card]]

    def nvmlDeviceGetUtilizationRates(self, card: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=90)

    def nvmlDeviceGetMemoryInfo(self, card: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=self.used)

    def nvmlDeviceGetClockInfo(self, card: int, kind: str) -> int:  # noqa: N802
        return {"sm": 1980, "memory": 2600}[kind]

    def nvmlDeviceGetPowerUsage(self, card: int) -> int:  # noqa: N802
        return 650_000

    def nvmlDeviceGetTemperature(self, card: int, kind: str) -> int:  # noqa: N802
        raise self.NVMLError("not supported")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: int) -> int:  # noqa: N802
        return self.reasons


@pytest.fixture
def nvml() -> FakeNvml:
    """Cards at rest."""
    return FakeNvml()


def test_a_quiet_card_is_fit_and_described(nvml: FakeNvml) -> None:
    watch = GpuWatch(nvml)
    nvml.processes[1] |= {7001, 7002}  # as a container sees them: other ids than the trainings'
    watch.started([11, 12], {"device_uuid": "aaaa-1"})
    watch.begin()
    watch.sample()
    nvml.used = 2**31
    seen = watch.end()
    assert (seen["sm_mhz"], seen["memory_mhz"], seen["watts"]) == (1980, 2600, 650)
    assert (seen["celsius"], seen["utilisation"], seen["reasons"]) == (None, 0.9, 0x4)
    assert (seen["memory_bytes"], seen["strangers"]) == (2**31, 0)
    assert unfit([seen]) == []


@pytest.mark.parametrize(
    ("bit", "name"),
    [(0x8, "hardware slowdown"), (0x20, "software"), (0x40, "thermal"), (0x80, "power brake")],
)
def test_throttling_is_unfit(nvml: FakeNvml, bit: int, name: str) -> None:
    watch = GpuWatch(nvml)
    watch.started([], {})
    watch.begin()
    nvml.reasons |= bit
    watch.sample()
    nvml.reasons = 0
    (reason,) = unfit([watch.end()])
    assert name in reason


def test_another_process_on_the_card_is_unfit(nvml: FakeNvml) -> None:
    nvml.processes[0] = {900}
    there_before = GpuWatch(nvml)
    nvml.processes[0] |= {11, 12}
    there_before.started([11, 12], {"device_uuid": "aaaa-0"})
    there_before.begin()
    assert "1 other process" in unfit([there_before.end()])[0]

    nvml.processes[0] = set()
    comes_later = GpuWatch(nvml)
    nvml.processes[0] = {11, 12}
    comes_later.started([11, 12], {"device_uuid": "aaaa-0"})
    comes_later.begin()
    assert unfit([comes_later.end()]) == []
    comes_later.begin()
    nvml.processes[0] = {11, 12, 13}
    comes_later.sample()
    nvml.processes[0] = {11, 12}
    assert "1 other process" in unfit([comes_later.end()])[0]


def test_memory_in_use_betrays_a_hidden_process(nvml: FakeNvml) -> None:
    nvml.used = 5 * 2**30
    watch = GpuWatch(nvml)
    watch.started([11], {})
    watch.begin()
    assert "5.0 GiB" in unfit([watch.end()])[0]


def test_a_cpu_watch_knows_its_own_work_from_others() -> None:
    watch = CpuWatch()
    watch.begin()
    sum(range(5_000_000))
    seen = watch.end()
    assert set(seen) == {"neighbours", "own", "steal", "load"}
    assert 0 < seen["own"] <= 1.1
    assert unfit([{"neighbours": 0.05, "steal": 0.0}, {"neighbours": 0.12, "steal": 0.0}]) == []
    disturbed = [{"neighbours": 0.08, "steal": 0.12}]
    assert "20.0%" in unfit(disturbed)[0]
    assert unfit(disturbed, max_neighbours=0.5) == []
