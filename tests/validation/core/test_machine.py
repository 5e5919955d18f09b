"""What a lane needs and this machine lacks is named: cards, the right cards, software."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from validation.config import Lane, declaration_of
from validation.running.environment import default_lane
from validation.running.machine import unfit, visible_cards

HOPPER = Lane(name="h200", gpus=1, capabilities=("9.0",))
H200, A100, T4 = ("NVIDIA H200", "9.0"), ("NVIDIA A100-SXM4-80GB", "8.0"), ("Tesla T4", "7.5")


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


def machine(
    monkeypatch: pytest.MonkeyPatch, cards: Sequence[tuple[str, str]], *, bytes_too: bool = False
) -> None:
    """Makes this a machine of these cards, in the order of their slots."""

    def text(value: str) -> str | bytes:
        return value.encode() if bytes_too else value

    def capability(index: int) -> tuple[int, ...]:
        return tuple(map(int, cards[index][1].split(".")))

    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(cards),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda index: text(cards[index][0]),
        nvmlDeviceGetUUID=lambda index: text(f"GPU-{index}{index}-abc"),
        nvmlDeviceGetCudaComputeCapability=lambda index: tuple(
            map(int, cards[index][1].split("."))
        ),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]


@pytest.mark.parametrize("bytes_too", [False, True])
def test_another_card_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, bytes_too: bool) -> None:
    machine(monkeypatch, [A100], bytes_too=bytes_too)
    assert unfit(HOPPER, 1) == (
        "lane h200 needs compute capability 9.0; this machine has NVIDIA A100-SXM4-80GB (8.0)"
    )
    assert unfit(Lane(name="any", gpus=1), 1) is None
    either = Lane(name="ampere", gpus=1, capabilities=("8.0", "9.0"))
    assert unfit(either, 1) is None
    machine(monkeypatch, [T4], bytes_too=bytes_too)
    assert unfit(either, 1) == (
        "lane ampere needs compute capability 8.0 or 9.0; this machine has Tesla T4 (7.5)"
    )


def test_too_few_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, [H200])
    reason = unfit(Lane(name="h200-x2", gpus=2, capabilities=("9.0",)), 1)
    assert reason == "lane h200-x2 has 2 GPU(s), this machine has 1"


def test_every_card_that_is_used_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, [H200, A100])
    assert unfit(HOPPER, 2) is None
    assert unfit(Lane(name="h200-x2", gpus=2, capabilities=("9.0",)), 2) == (
        "lane h200-x2 needs compute capability 9.0; this machine has NVIDIA H200 (9.0), "
        "NVIDIA A100-SXM4-80GB (8.0)"
    )


@pytest.mark.parametrize(
    ("order", "chosen", "names"),
    [
        (None, None, ["H200", "A100", "T4"]),  # CUDA's own order: the fastest first
        ("PCI_BUS_ID", None, ["T4", "H200", "A100"]),
        (None, "2", ["T4"]),
        (None, "2,0", ["T4", "H200"]),
        ("PCI_BUS_ID", "1", ["H200"]),
        (None, "GPU-11", ["H200"]),
        (None, "GPU-11-abc, GPU-00", ["H200", "T4"]),
        (None, "0,7,1", ["H200"]),
        (None, "GPU-", []),  # names more than one
        (None, "-1", []),
        (None, "", []),
    ],
)
def test_cards_are_those_that_cuda_would_show(
    monkeypatch: pytest.MonkeyPatch, order: str | None, chosen: str | None, names: list[str]
) -> None:
    machine(monkeypatch, [T4, H200, A100])
    for name, value in (("CUDA_DEVICE_ORDER", order), ("CUDA_VISIBLE_DEVICES", chosen)):
        if value is not None:
            monkeypatch.setenv(name, value)
    seen = [card.name for card in visible_cards()]
    assert [name.replace("-", " ").split()[1] for name in seen] == names


def test_missing_software_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, [H200])
    needs = Lane(name="h200", gpus=1, modules=("json", "no_such_package.kernels"))
    assert unfit(needs, 1) == (
        "lane h200 needs the Python module no_such_package.kernels, which is not installed"
    )
    assert unfit(Lane(name="h200", gpus=1, modules=("json", "os.path")), 1) is None


def test_unknown_cards_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # type: ignore[arg-type]
    assert unfit(HOPPER, 1) is None

    def refuse() -> None:
        raise OSError("no driver")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=refuse))  # type: ignore[arg-type]
    assert unfit(HOPPER, 1) is None


def test_the_default_lane_is_the_largest_that_the_machine_serves(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = declaration_of(repository).lanes
    machine(monkeypatch, [H200] * 8)
    lanes = [default_lane(declared, gpus) for gpus in (0, 1, 2, 3, 4, 8)]
    assert lanes == ["cpu", "h200", "h200-x2", "h200-x2", "h200-x4", "h200-x4"]
    machine(monkeypatch, [A100])
    assert default_lane(declared, 1) == "cpu"


def test_a_check_on_an_unfit_machine_is_unfit(plain_project: Any) -> None:
    """With stand-ins: torch counts a card, and NVML knows it as an A100."""
    project = plain_project
    (project.root / "stand_in.py").write_text(
        "import sys, types\n"
        "nvml = types.ModuleType('pynvml')\n"
        "nvml.nvmlInit = nvml.nvmlShutdown = lambda: None\n"
        "nvml.nvmlDeviceGetCount = lambda: 1\n"
        "nvml.nvmlDeviceGetHandleByIndex = lambda index: index\n"
        "nvml.nvmlDeviceGetUUID = lambda index: 'GPU-0'\n"
        "nvml.nvmlDeviceGetName = lambda index: 'NVIDIA A100-SXM4-80GB'\n"
        "nvml.nvmlDeviceGetCudaComputeCapability = lambda index: (8, 0)\n"
        "sys.modules['pynvml'] = nvml\n"
        "import validation.gate.plan\n"
        "validation.gate.plan.gpu_count = lambda: 1\n"
        "import validation.cli.common\n"
        "validation.cli.common.gpu_count = lambda: 1\n"
        "from validation.cli.program import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )

    def stand_in(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "stand_in.py", *words],
            cwd=project.root,
            env=project.environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    project.edit('lanes=["cpu"]', 'lanes=["cpu", "h200"]', "plain_cases.py")
    project.edit("gpus = 1\n", 'gpus = 1\ncapability = ["9.0"]\n', "pyproject.toml")
    project.commit("Runs on a GPU too")
    run = stand_in("check", "--lane", "h200", "--json")
    assert run.returncode == 4, run.stdout + run.stderr
    refusal = "lane h200 needs compute capability 9.0; this machine has NVIDIA A100-SXM4-80GB (8.0)"
    assert {case["message"] for case in json.loads(run.stdout)["cases"]} == {refusal}
    refused = stand_in("update", "--lane", "h200", "--reason", "first")
    assert refused.returncode == 2
    assert refusal in refused.stderr
