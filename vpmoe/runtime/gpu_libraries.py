"""Libraries that need a GPU and that Megatron-core takes where they import.

With Transformer Engine installed, Megatron 0.19.2 clips gradients with its kernels even for local
layers, and ends in an error of CUDA on a machine whose GPU is hidden. So the CPU lane hides them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

GPU_LIBRARIES = (
    "amp_C",
    "apex",
    "causal_conv1d",
    "cudnn",
    "cupy",
    "deep_ep",
    "fast_hadamard_transform",
    "fla",
    "flash_attn",
    "flash_attn_3",
    "flash_mla",
    "flashattn_hopper",
    "flashinfer",
    "flashinfer_cubin",
    "flashinfer_jit_cache",
    "fused_weight_gradient_mlp_cuda",
    "mamba_ssm",
    "nixl",
    "nvidia_kitchen",
    "nvshmem",
    "scaled_masked_softmax_cuda",
    "scaled_softmax_cuda",
    "scaled_upper_triang_masked_softmax_cuda",
    "tensorrt_llm",
    "tilelang",
    "torch_memory_saver",
    "transformer_engine",
    "transformer_engine_torch",
)
"""Top-level modules; a test holds them to what the installed Megatron-core imports."""


@contextlib.contextmanager
def hidden_libraries() -> Iterator[None]:
    """Makes every import of these libraries fail as if they were not installed."""
    loaded = {name: sys.modules[name] for name in list(sys.modules) if _is_gpu_library(name)}
    # None is how Python marks a module that must not be found.
    sys.modules.update(dict.fromkeys((*GPU_LIBRARIES, *loaded)))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in (*GPU_LIBRARIES, *loaded):
            sys.modules.pop(name, None)
        sys.modules.update(loaded)


def _is_gpu_library(name: str) -> bool:
    return name.partition(".")[0] in GPU_LIBRARIES
