"""A CUDA graph over what a step queues: one launch where there were hundreds.

A replay repeats what the host decided at capture, so a step says what that was, and another
decision is another graph. Numbers that change from step to step, such as learning rates, must stand
on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch


def capture(work: Callable[[], None]) -> Callable[[], None]:
    """Captures what `work` queues on the current CUDA device, without running it.

    Args:
        work: queues the work.

    Returns:
        A function that replays the work.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    # Other threads, as NCCL's watchdog, may ask for their events meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay


class GraphedWork:
    """Work that is replayed once it has been the same often enough.

    Args:
        work: queues on the device, waits for nothing, and allocates nothing that outlives it.
        warm_up: how often it runs as it is before the capture, so that kernels are compiled and
            tables are where they stay; at least once.
    """

    def __init__(self, work: Callable[[], None], warm_up: int) -> None:
        self._work = work
        self._warm_up = max(1, warm_up)
        self._decided: Hashable = None
        self._runs = 0
        self._replay: Callable[[], None] | None = None

    def __call__(self, decided: Hashable) -> None:
        """Runs or replays it.

        Args:
            decided: all that a replay would keep of the host: addresses, sizes, numbers. With
                another one the graph is dropped and captured anew after as many runs.
        """
        if decided != self._decided:
            self._decided, self._runs, self._replay = decided, 0, None
        if self._runs < self._warm_up:
            self._runs += 1
            self._work()
            return
        if self._replay is None:
            self._replay = capture(self._work)
        self._replay()
