"""What a run ran on: hardware, versions and settings that can move its numbers."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from validation.config import CPU, Lane
from validation.isolation import HIDDEN_DISTRIBUTIONS
from validation.running.machine import unfit_gpus

# Variables that change numbers or speed; nothing else of the environment is recorded.
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_THREADS",
    "NCCL_ALGO",
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO",
    "OMP_NUM_THREADS",
    "ONEDNN_MAX_CPU_ISA",
    "TORCHDYNAMO_DISABLE",
)


def describe(lane: Lane, ranks: int = 1, arithmetic: str = "native") -> dict[str, Any]:
    """The environment of this process.

    Args:
        lane: the lane it serves.
        ranks: processes of the run.
        arithmetic: that the run computes in, see `validation.arithmetic`.

    Returns:
        JSON values; what cannot be known is None. Of torch only a process that uses it can tell.
    """
    torch = sys.modules.get("torch")
    described: dict[str, Any] = {
        "lane": lane.name,
        "ranks": ranks,
        "arithmetic": arithmetic,
        "device": _cpu_name(),
        **_cpu_facts(),
        "platform": f"{sys.platform} {platform.machine()}",
        "blas": _blas(torch) if torch else None,
        "capability": None,
        "driver": None,
        "cuda": None,
        "cpu_isa": torch.backends.cpu.get_cpu_capability() if torch else None,
        "threads": torch.get_num_threads() if torch else None,
        "deterministic": torch.are_deterministic_algorithms_enabled() if torch else None,
        "python": platform.python_version(),
        "image": os.environ.get("GOLDEN_IMAGE_DIGEST"),
    }
    if lane.on_gpus and torch and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        described |= {
            "device": torch.cuda.get_device_name(),
            "capability": f"{major}.{minor}",
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "topology": _topology(torch) if ranks > 1 else None,
        }
    hidden = () if lane.on_gpus else HIDDEN_DISTRIBUTIONS
    described |= {name: None if name in hidden else _version(name) for name in lane.recorded}
    described |= {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return described


def machine_type(environment: Mapping[str, Any]) -> str:
    """What tells machines apart whose rounding may differ, such as `AuthenticAMD 26/2`.

    Machines of one type have one set of kernels. On a lane with GPUs it is the GPU's name; where
    vendor, family and model of the CPU are not recorded, its name.
    """
    cpu = [environment.get(name) for name in ("cpu_vendor", "cpu_family", "cpu_model")]
    if environment.get("capability") is not None or None in cpu:
        return str(environment.get("device") or "unknown")
    vendor, family, model = cpu
    return f"{vendor} {family}/{model}"


def here(lane: Lane, ranks: int = 1) -> dict[str, Any]:
    """The environment that runs of a lane will find on this machine.

    It says what a golden is chosen by. On a lane with GPUs this process uses CUDA from now on.
    """
    if lane.on_gpus:
        importlib.import_module("torch")
    return describe(lane, ranks)


def gpu_count() -> int:
    """CUDA devices that this process may use, without initialising CUDA."""
    # Importing torch takes seconds, which a machine without a card need not spend.
    if not any(Path("/dev").glob("nvidia[0-9]*")) or importlib.util.find_spec("torch") is None:
        return 0
    import torch

    return torch.cuda.device_count()


def default_lane(lanes: Mapping[str, Lane], gpus: int) -> str:
    """Chooses the lane that this machine serves with so many GPUs: the one that uses most of them.

    Only the hardware decides. Software that is missing is refused by name where the lane is run.

    Args:
        lanes: those to choose from, by name.
        gpus: CUDA devices of the machine.

    Returns:
        Name of the lane.
    """
    fit = [name for name, lane in lanes.items() if unfit_gpus(lane, gpus) is None]
    return max(fit, key=lambda name: lanes[name].gpus, default=CPU)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# What Linux calls a processor's vendor, family and model: on x86, and on Arm.
_CPU_FACTS = {
    "cpu_vendor": ("vendor_id", "CPU implementer"),
    "cpu_family": ("cpu family", "CPU architecture"),
    "cpu_model": ("model", "CPU part"),
}


def _cpu_name() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _cpu_facts() -> dict[str, str | None]:
    known = _cpuinfo()
    return {
        fact: next((known[name] for name in names if name in known), None)
        for fact, names in _CPU_FACTS.items()
    }


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """What /proc/cpuinfo says of the first processor; nothing on other systems."""
    try:
        first = Path("/proc/cpuinfo").read_text().strip().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _blas(torch: Any) -> str | None:
    """The library of torch's matrix products, such as `mkl 2024.2`; None where it does not say."""
    built = torch.__config__.show()
    if torch.backends.mkl.is_available():
        version = re.search(r"Math Kernel Library Version ([\d.]+)", built)
        return f"mkl {version[1]}" if version else "mkl"
    named = re.search(r"BLAS_INFO=(\w+)", built)
    return named[1] if named else None


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
