"""Lanes: the right one is picked, the GPU lane changes nothing, the CPU lane leaves no trace."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.overrides import _get_current_function_mode_stack

from vpmoe import pretrain
from vpmoe.megatron.repairs import skip_helper_build
from vpmoe.runtime import cpu_lane, detect_lane
from vpmoe.runtime.lane import CPU, GPU, in_words
from vpmoe.runtime.patches import replaced

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="maps a machine without CUDA")


def _surroundings() -> dict[str, object]:
    """Everything that a lane may touch, by identity."""
    import megatron.core.datasets.utils
    import megatron.core.tensor_parallel.random
    import megatron.training.initialize
    import megatron.training.training

    modules = (
        torch.cuda,
        torch.cuda.random,
        megatron.core.datasets.utils,
        megatron.core.tensor_parallel.random,
        megatron.training.initialize,
        megatron.training.training,
    )
    found: dict[str, object] = {
        f"{m.__name__}.{name}": value for m in modules for name, value in vars(m).items()
    }
    found["TORCHDYNAMO_DISABLE"] = os.environ.get("TORCHDYNAMO_DISABLE")
    found["modes"] = tuple(_get_current_function_mode_stack())
    return found


def _assert_unchanged(before: dict[str, object]) -> None:
    after = _surroundings()
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] is not before[name] and name != "modes"] == []
    assert after["modes"] == before["modes"]


@pytest.mark.parametrize(("cuda", "lane"), [(False, CPU), (True, GPU)])
def test_detection_follows_cuda(monkeypatch: pytest.MonkeyPatch, cuda: bool, lane: object) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert detect_lane() is lane


def test_gpu_lane_changes_nothing() -> None:
    before = _surroundings()
    with GPU.activate():
        _assert_unchanged(before)
    assert not any("gloo" in flag or "cpu" in flag for flag in GPU.default_flags)


@no_cuda
def test_leaving_the_cpu_lane_restores_everything() -> None:
    before = _surroundings()
    with CPU.activate():
        assert torch.cuda.current_device is not before["torch.cuda.current_device"]
        assert os.environ["TORCHDYNAMO_DISABLE"] == "1"
    _assert_unchanged(before)


@no_cuda
def test_an_error_inside_the_cpu_lane_restores_everything() -> None:
    before = _surroundings()
    with pytest.raises(KeyError), CPU.activate(), skip_helper_build():
        raise KeyError
    _assert_unchanged(before)


def test_cpu_lane_refuses_a_machine_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _surroundings()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA_VISIBLE_DEVICES"), cpu_lane.activate():
        pass
    monkeypatch.undo()
    _assert_unchanged(before)


@no_cuda
def test_cuda_literals_reach_the_cpu() -> None:
    with CPU.activate():
        assert torch.zeros(2, device="cuda").device.type == "cpu"
        assert torch.zeros(2, device=torch.device("cuda:0")).device.type == "cpu"
        assert torch.ones(2).cuda().to("cuda").to(device="cuda").device.type == "cpu"
        assert torch.ones(2).to("cuda", dtype=torch.float64).dtype == torch.float64
        assert torch.ones(2).type() == "torch.cuda.FloatTensor"
        assert torch.ones(2).type(torch.float64).dtype == torch.float64
        assert torch.ones(2).to(torch.float64).dtype == torch.float64
    assert torch.ones(2).type() == "torch.FloatTensor"


@no_cuda
def test_random_trackers_are_separate_streams() -> None:
    """Megatron's tracker forks leave the default stream where it was, as on CUDA."""
    with CPU.activate():
        from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

        tracker = CudaRNGStatesTracker()
        torch.manual_seed(1)
        tracker.add("experts", 7)
        plain = torch.rand(3)
        torch.manual_seed(1)
        with tracker.fork("experts"):
            first = torch.rand(3)
        assert torch.equal(torch.rand(3), plain)
        with tracker.fork("experts"):
            second = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3), second)


def test_replaced_puts_back_what_was_there() -> None:
    class Owner:
        value = 1

    with replaced(Owner, "value", 2), replaced(Owner, "new", 3):
        assert (Owner.value, Owner.new) == (2, 3)  # type: ignore[attr-defined]
    assert Owner.value == 1
    assert not hasattr(Owner, "new")


def test_importing_the_entry_imports_no_megatron() -> None:
    """Megatron decides on torch.compile when it is imported: the lane must be active first."""
    code = (
        "import sys, vpmoe.pretrain; sys.exit(any(m.startswith('megatron') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
def test_cuda_machine_stays_on_cuda() -> None:
    assert detect_lane() is GPU
    with detect_lane().activate():
        assert torch.zeros(2, device="cuda").device.type == "cuda"
        assert torch.ones(2).cuda().type() == "torch.cuda.FloatTensor"


def test_a_lane_says_why_it_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert in_words(CPU) == "lane cpu (no CUDA device is visible)"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert in_words(CPU) == "lane cpu (this torch is built without CUDA)"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert in_words(GPU) == "lane gpu (NVIDIA H100, compute capability 9.0)"


@no_cuda
@pytest.mark.parametrize(("rank", "lines"), [(None, 1), ("0", 1), ("1", 0)])
def test_the_first_rank_says_the_lane(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: str | None,
    lines: int,
) -> None:
    monkeypatch.setattr(pretrain, "_train", lambda flags: None)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert pretrain.main([]) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [f"vpmoe pretrain: {in_words(CPU)}"] * lines
    assert printed.out == ""
