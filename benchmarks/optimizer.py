"""A whole NorMuon step against fused AdamW and torch's Muon, in one interleaved run.

    python -m benchmarks.optimizer [--matrices 512] [--rows 128] [--columns 1024] [--rounds 30]

The parameters are `--matrices` fp32 tensors [rows, columns] and as many [columns, rows]: by
default the experts of two layers of vpmoe-6b. Every candidate has weights and random gradients of
its own. Times are medians of single steps with a synchronisation after each; the spread is
(p90 - p10) / median. NorMuon's peak extra memory and its time on the same matrices in two stacked
tensors are listed as well.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from vpmoe.optimizer import NorMuon

Shapes = list[tuple[int, ...]]


def parameters(shapes: Shapes, device: str) -> list[torch.nn.Parameter]:
    """Weights with random gradients."""
    params = []
    for shape in shapes:
        param = torch.nn.Parameter(torch.randn(shape, device=device) * 0.02)
        param.grad = torch.randn(shape, device=device)
        params.append(param)
    return params


def timed(step: Callable[[], object], device: str) -> float:
    """Milliseconds of one step, launches included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def extra_memory(optimizer: torch.optim.Optimizer) -> float:
    """Peak memory of a step beyond what is held anyway, as a share of the optimizer's state."""
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer.step()
    torch.cuda.synchronize()
    state = sum(
        value.numel() * value.element_size()
        for entry in optimizer.state.values()
        for value in entry.values()
        if isinstance(value, torch.Tensor)
    )
    return (torch.cuda.max_memory_allocated() - held) / state


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matrices", type=int, default=512)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    m, n, count = options.rows, options.columns, options.matrices
    separate: Shapes = [(m, n)] * count + [(n, m)] * count
    stacked: Shapes = [(count, m, n), (count, n, m)]
    fused = torch.optim.AdamW(parameters(separate, device), lr=1e-3, fused=True)
    candidates: dict[str, torch.optim.Optimizer] = {
        "NorMuon": NorMuon(parameters(separate, device), lr=1e-3, weight_decay=0.1),
        "NorMuon, stacked": NorMuon(parameters(stacked, device), lr=1e-3, weight_decay=0.1),
        "AdamW, fused": fused,
        "torch.optim.Muon": torch.optim.Muon(parameters(separate, device), lr=1e-3),
    }
    times: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    for optimizer in candidates.values():
        for _ in range(3):
            timed(optimizer.step, device)
    for _ in range(options.rounds):
        for candidate, optimizer in candidates.items():
            times[candidate].append(timed(optimizer.step, device))

    print(f"{name}, torch {torch.__version__}, fp32 weights, {options.rounds} rounds")
    print(f"{count} x [{m}, {n}] and {count} x [{n}, {m}]\n")
    print("| optimizer | ms | spread | against fused AdamW |\n| --- | --- | --- | --- |")
    base = statistics.median(times["AdamW, fused"])
    for candidate, values in times.items():
        median = statistics.median(values)
        ordered = sorted(values)
        low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
        spread = (high - low) / median
        print(f"| {candidate} | {median:.2f} | {spread:.0%} | {median / base:.2f} |")
    if device == "cuda":
        share = extra_memory(candidates["NorMuon"])
        print(f"\npeak extra memory of NorMuon's step: {share:.1%} of its state")


if __name__ == "__main__":
    main()
