"""What a run ran on: hardware, versions and settings that can move its numbers."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import Any

# Variables that change numbers or speed; nothing else of the environment is recorded.
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "MKL_CBWR",
    "MKL_NUM_THREADS",
    "NCCL_ALGO",
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO",
    "OMP_NUM_THREADS",
    "TORCHDYNAMO_DISABLE",
)
PACKAGES = (
    "torch",
    "megatron-core",
    "transformer-engine",
    "triton",
    "numpy",
    "tiktoken",
    "vpmoe",
)


def describe(lane: str, ranks: int = 1, arithmetic: str = "native") -> dict[str, Any]:
    """The environment of this process.

    Args:
        lane: the lane it serves.
        ranks: processes of the run.

    Returns:
        JSON values; what cannot be known is None. Of torch only a process that uses it can tell.
    """
    torch = sys.modules.get("torch")
    described: dict[str, Any] = {
        "lane": lane,
        "ranks": ranks,
        "device": _cpu_model(),
        "capability": None,
        "driver": None,
        "cuda": None,
        "cpu_isa": torch.backends.cpu.get_cpu_capability() if torch else None,
        "threads": torch.get_num_threads() if torch else None,
        "deterministic": torch.are_deterministic_algorithms_enabled() if torch else None,
        "python": platform.python_version(),
        "image": os.environ.get("GOLDEN_IMAGE_DIGEST"),
    }
    if lane != "cpu" and torch and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        described |= {
            "device": torch.cuda.get_device_name(),
            "capability": f"{major}.{minor}",
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "topology": _topology(torch) if ranks > 1 else None,
        }
    described |= {name: _version(name) for name in PACKAGES}
    described |= {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return described


def here(lane: str, ranks: int = 1) -> dict[str, Any]:
    """The environment that runs of a lane will find on this machine, as far as a golden is chosen
    by it; on a lane with GPUs this process uses CUDA from now on."""
    if lane != "cpu":
        importlib.import_module("torch")
    return describe(lane, ranks)


def gpu_count() -> int:
    """CUDA devices that this process may use, without initialising CUDA."""
    # Importing torch takes seconds, which a machine without a card need not spend.
    if not any(Path("/dev").glob("nvidia[0-9]*")) or importlib.util.find_spec("torch") is None:
        return 0
    import torch

    return torch.cuda.device_count()


def default_lane(gpus: int) -> str:
    """The lane that a machine of so many GPUs serves."""
    return "cpu" if gpus == 0 else ("h200" if gpus == 1 else "h200-x2")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _topology(torch: Any) -> str:
    """How many GPUs of one host there are, and whether each reaches the others' memory."""
    count = torch.cuda.device_count()
    pairs = [(one, other) for one in range(count) for other in range(one)]
    reach = all(torch.cuda.can_device_access_peer(*pair) for pair in pairs)
    return f"{count} GPUs of one host, {'' if reach else 'no '}peer access"


def _driver() -> str | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            version = pynvml.nvmlSystemGetDriverVersion()
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # NVML may be absent in a container; the driver is then unknown
        return None
    return version.decode() if isinstance(version, bytes) else str(version)
