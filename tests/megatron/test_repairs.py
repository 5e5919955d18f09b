"""What a training does where Megatron stops at a result that is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vpmoe.runtime import cpu_lane


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What reaches Megatron's `save_checkpoint_and_time`."""
    if torch.cuda.is_available():
        pytest.skip("the CPU lane is for machines without CUDA")
    found: list[Any] = []
    with cpu_lane.activate():
        import megatron.training as package
        import megatron.training.training as training

        def save_checkpoint_and_time(iteration: int, model: Any, optimizer: Any) -> None:
            found.append((iteration, [float(buffer) for buffer in model.buffers()]))

        monkeypatch.setattr(training, "save_checkpoint_and_time", save_checkpoint_and_time)
        monkeypatch.setattr(training, "print_rank_0", found.append)
        monkeypatch.setattr(package, "get_args", lambda: SimpleNamespace(save=None))
        yield found


def test_without_a_folder_nothing_is_saved_and_the_log_says_so(saves: list[Any]) -> None:
    import megatron.training.training as training

    from vpmoe.megatron.repairs import stop_at_nan

    with stop_at_nan():
        training.save_checkpoint_and_time(7, None, None)
    (message,) = saves
    assert "no --save" in message
    assert "after iteration 7 was not taken" in message


def test_the_checkpoint_is_of_the_step_before(
    saves: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import megatron.training as package
    import megatron.training.training as training

    from vpmoe.megatron.optimizer import FiniteChain
    from vpmoe.megatron.repairs import stop_at_nan

    monkeypatch.setattr(package, "get_args", lambda: SimpleNamespace(save="folder"))
    model = torch.nn.Module()
    model.register_buffer("expert_bias", torch.tensor(1.0))
    chain = FiniteChain([], [model])
    with stop_at_nan():
        for _ in range(2):  # the step, and the step run again
            chain.zero_grad()
            model.expert_bias += 1.0
        training.save_checkpoint_and_time(3, model, chain)
        model.expert_bias += 1.0
        training.save_checkpoint_and_time(4, model, chain)
    assert saves == [(3, [1.0]), (4, [2.0])]
