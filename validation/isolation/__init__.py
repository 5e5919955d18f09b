"""What a lane without GPUs hides from its runs: accelerators, and libraries made for them.

`isolated()` gives the environment of such a run's processes. Variables hide the accelerators that
can be hidden by one; `isolated/sitecustomize.py`, which Python imports before anything else in
every process of the run, calls `hide()` for the rest. So the user's installation and settings
decide nothing, and what a run computes does not depend on what happens to be importable.

Triton is not hidden: it comes with torch, chooses nothing by being there, and its interpreter is a
fair use of a CPU.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

VARIABLES: Mapping[str, str] = {
    "CUDA_VISIBLE_DEVICES": "",
    # HIP takes an empty list for none given; -1 is no device for both layers of ROCm.
    "HIP_VISIBLE_DEVICES": "-1",
    "ROCR_VISIBLE_DEVICES": "-1",
    # Of every SYCL backend the CPU only; ZE_AFFINITY_MASK cannot name an empty set.
    "ONEAPI_DEVICE_SELECTOR": "*:cpu",
}
"""They win over the user's own: the lane is a promise."""

HIDDEN: Mapping[str, Sequence[str]] = {
    "amp_C": (),
    "apex": (),
    "causal_conv1d": (),
    "causal_conv1d_cuda": (),
    "cudnn": ("nvidia-cudnn-frontend",),
    "cupy": ("cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x"),
    "deep_ep": (),
    "deep_gemm": (),
    "fast_hadamard_transform": (),
    "fla": ("flash-linear-attention", "fla-core"),
    "flash_attn": (),
    "flash_attn_2_cuda": (),
    "flash_attn_3": (),
    "flash_attn_interface": (),
    "flash_mla": (),
    "flashattn_hopper": (),
    "flashinfer": ("flashinfer-python",),
    "flashinfer_cubin": (),
    "flashinfer_jit_cache": (),
    "fused_layer_norm_cuda": (),
    "fused_weight_gradient_mlp_cuda": (),
    "grouped_gemm": ("nv-grouped-gemm",),
    "liger_kernel": (),
    "mamba_ssm": (),
    "nixl": (),
    "nvidia_kitchen": (),
    "nvshmem": ("nvshmem4py-cu12", "nvshmem4py-cu13"),
    "scaled_masked_softmax_cuda": (),
    "scaled_softmax_cuda": (),
    "scaled_upper_triang_masked_softmax_cuda": (),
    "selective_scan_cuda": (),
    "tensorrt_llm": (),
    "tilelang": (),
    "torch_memory_saver": (),
    "transformer_engine": ("transformer-engine-cu12", "transformer-engine-cu13"),
    "transformer_engine_torch": (),
    "xformers": (),
}
"""Top-level module -> distributions with it, besides the one of its own name. Training code takes
most of these where they import, then computes other bits or needs a device."""


def _normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


HIDDEN_DISTRIBUTIONS = frozenset(
    _normalized(name) for module, more in HIDDEN.items() for name in (module, *more)
)

_SITE = Path(__file__).parent / "isolated"
_MPS = "torch.backends.mps"


def isolated(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment for a process that must see no accelerator, nor must what it starts.

    Args:
        environment: every variable that it would have otherwise.

    Returns:
        The variables.
    """
    # Here, as the processes that see nothing need not be able to import it.
    from validation.config.python_path import entry

    path = [entry(str(_SITE)), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, **VARIABLES, "PYTHONPATH": os.pathsep.join(path)}


def hide() -> None:
    """Hides from this process, for good, what no variable hides: libraries and Apple's MPS."""
    # The one way to hide that both `import` and `importlib.util.find_spec` understand.
    sys.modules.update(dict.fromkeys(HIDDEN))  # type: ignore[arg-type]
    find = importlib.metadata.Distribution.from_name

    def from_name(name: str) -> importlib.metadata.Distribution:
        if name and _normalized(name) in HIDDEN_DISTRIBUTIONS:
            raise importlib.metadata.PackageNotFoundError(name)
        return find(name)

    importlib.metadata.Distribution.from_name = from_name  # type: ignore[method-assign]
    sys.meta_path.insert(0, _WithoutMps())


def explain_hidden(error: ModuleNotFoundError) -> None:
    """Adds to an import's error that the lane hides the module, where that is the reason."""
    name = (error.name or "").partition(".")[0]
    if name in HIDDEN and sys.modules.get(name, error) is None:
        error.add_note(f"{name} needs a GPU: a lane without GPUs hides it, installed or not")


class _WithoutMps(MetaPathFinder):
    """Makes torch's module on MPS report that there is none, right after its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that others find, with a loader that goes on to report none."""
        if fullname != _MPS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _answer_no(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _answer_no(mps: ModuleType) -> None:
    def no() -> bool:
        return False

    # Cached, as torch's own is: from torch 2.15 on its compiler looks behind the cache.
    mps.is_available = functools.cache(no)  # type: ignore[attr-defined]
    mps.is_built = no  # type: ignore[attr-defined]
    # What torch.mps and torch.accelerator ask.
    core = sys.modules.get("torch._C")
    if core is not None:
        core._mps_is_available = no  # type: ignore[attr-defined]
