"""Slowdowns of known size: extra products after each step, counted out once against a step's time.

They change no number, so they are no faults of a check: `golden bench --fault ID` plants them in
the head to prove that the gate sees them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from validation.cases.base import Fault
from vpmoe.cases.faults.planting import Planted, patched
from vpmoe.megatron import points

# Steps that start up, graphs captured among them, and steps that are measured; the warm-up of a
# benchmark is as long.
_SKIPPED, _MEASURED = 5, 3
_SIDE = {"cpu": 256, "cuda": 1024}
_TIMED = 50


def slow_step_3() -> Planted:
    """Every step takes 3 % longer."""
    return slower(lambda: 0.03)


def slow_step_1() -> Planted:
    """Every step takes 1 % longer."""
    return slower(lambda: 0.01)


def slower(share: Callable[[], float]) -> Planted:
    """Steps take longer by a share, which is asked for before each."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        times: list[float] = []
        products: _Products | None = None
        whole = 0.0  # products that take as long as a step

        def train_step(*args: Any, **kwargs: Any) -> Any:
            nonlocal products, whole
            if products is not None:
                result = original(*args, **kwargs)
                # Queued: a wait would cost the training more than they do.
                products.queue(round(share() * whole))
                return result
            _wait()
            began = time.perf_counter()
            result = original(*args, **kwargs)
            _wait()
            times.append(time.perf_counter() - began)
            if len(times) == _SKIPPED + _MEASURED:
                products = _Products()
                whole = statistics.median(times[_SKIPPED:]) / products.seconds()
            return result

        return train_step

    return patched(*points.TRAIN_STEP.place, wrap)


class _Products:
    """Products of a fixed size, and nothing beside them: none of them costs nothing."""

    def __init__(self) -> None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._matrix = torch.full((_SIDE[device], _SIDE[device]), 0.5, device=device)
        self._product = torch.empty_like(self._matrix)

    def queue(self, count: int) -> None:
        """That many."""
        import torch

        for _ in range(count):
            torch.mm(self._matrix, self._matrix, out=self._product)

    def seconds(self) -> float:
        """Of one."""
        self.queue(_TIMED)
        _wait()
        times = []
        for _ in range(3):
            began = time.perf_counter()
            self.queue(_TIMED)
            _wait()
            times.append((time.perf_counter() - began) / _TIMED)
        return statistics.median(times)


def _wait() -> None:
    import torch

    torch.cuda.synchronize()  # which the CPU lane answers


THROUGHPUT_FAULTS = tuple(
    Fault(
        id=name,
        category="throughput",
        component="step",
        imitates=f"every step {percent} % slower",
        plant=f"{__name__}:{plant}",
        case="tiny_moe",
        lanes=("cpu", "h200", "h200-x2"),
        canary=False,
    )
    for name, percent, plant in (
        ("slow-step-3", 3, slow_step_3.__name__),
        ("slow-step-1", 1, slow_step_1.__name__),
    )
)
