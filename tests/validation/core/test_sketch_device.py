"""Sketches computed on a device equal those computed on the CPU."""

import numpy as np
import pytest
import torch

from validation.trace import sketch


@pytest.mark.parametrize("size", [5, 6144, 6145, 3 * 6144 + 1, 4096 * 6144 + 77])
def test_device_arithmetic_is_the_cpus(size: int) -> None:
    """The device's path, run on the CPU, against the plain one."""
    from validation.trace.sketch import _on_device

    values = torch.randn(size, generator=torch.Generator().manual_seed(size))
    plain, found = sketch(values), _on_device(values)
    assert found["norm"] == pytest.approx(plain.norm, rel=1e-9)
    assert found["mean"] == pytest.approx(plain.mean, rel=1e-6, abs=1e-9)
    assert found["abs_max"] == plain.abs_max
    np.testing.assert_allclose(
        found["projections"], plain.projections, rtol=1e-5, atol=1e-5 * plain.norm
    )


@pytest.mark.parametrize("size", [1, 64 << 20, (64 << 20) + 1, (2 * 64 << 20) + (5 << 20) + 3])
def test_content_in_pieces_has_the_hash_of_the_whole(size: int) -> None:
    """The way of a GPU's tensors through buffers that are used again, run on the CPU."""
    from validation.trace.sketch import _digest, staged

    content = torch.arange(size, dtype=torch.int32).mul_(40503).to(torch.uint8)
    assert _digest("x", staged(content)) == _digest("x", [content.numpy().data])


@pytest.mark.gpu
def test_a_gpu_tensor_has_the_cpus_sketch() -> None:
    values = torch.randn(5_000_000, device="cuda", dtype=torch.bfloat16)
    one, other = sketch(values), sketch(values.cpu())
    assert (one.digest, one.dtype, one.shape) == (other.digest, other.dtype, other.shape)
    np.testing.assert_allclose(
        one.projections, other.projections, rtol=1e-5, atol=1e-5 * other.norm
    )
