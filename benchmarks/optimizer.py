"""A whole NorMuon step against fused AdamW and torch's Muon, in one interleaved run.

    python -m benchmarks.optimizer [--matrices 512] [--rows 128] [--columns 1024] [--rounds 30]
    python -m benchmarks.optimizer --config configs/vpmoe-6b.toml [--layers 80] [--rounds 30]

The parameters are `--matrices` fp32 tensors [rows, columns] and as many [columns, rows]: by
default the experts of two layers of vpmoe-6b. Every candidate has weights and random gradients of
its own. Times are medians of single steps with a synchronisation after each; the spread is
(p90 - p10) / median. NorMuon's peak extra memory and its time on the same matrices in two stacked
tensors are listed as well.

With --config, the parameters are those of a preset's first --layers layers that NorMuon takes; the
two optimizers then hold their state one after the other, since both may not fit.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vpmoe.optimizer import NorMuon

Shapes = list[tuple[int, ...]]

HEADER = "| optimizer | ms | spread | against fused AdamW |\n| --- | --- | --- | --- |"


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


def preset_shapes(config: Path, layers: int | None) -> Shapes:
    """Shapes of the parameters that NorMuon takes in a preset's first layers."""
    from vpmoe.config import load_preset
    from vpmoe.optimizer.report import routing_report

    shapes = []
    for route in routing_report(load_preset(config).to_flags()):
        layer = route.name.partition("layers.")[2].partition(".")[0]
        if route.optimizer == "normuon" and (layers is None or int(layer) < layers):
            shapes.append(route.shape)
    return shapes


def row(name: str, times: list[float], base: float) -> str:
    """A line of the table."""
    median = statistics.median(times)
    ordered = sorted(times)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    return f"| {name} | {median:.2f} | {(high - low) / median:.0%} | {median / base:.2f} |"


def whole_model(options: argparse.Namespace, device: str) -> None:
    """The table of a preset's parameters."""
    shapes = preset_shapes(options.config, options.layers)
    times: dict[str, list[float]] = {}
    for name in ("AdamW, fused", "NorMuon"):
        weights = parameters(shapes, device)
        optimizer: torch.optim.Optimizer
        if name == "NorMuon":
            optimizer = NorMuon(weights, lr=1e-3, weight_decay=0.1)
        else:
            optimizer = torch.optim.AdamW(weights, lr=1e-3, fused=True)
        for _ in range(3):
            timed(optimizer.step, device)
        times[name] = [timed(optimizer.step, device) for _ in range(options.rounds)]
        share = extra_memory(optimizer) if device == "cuda" else None
        del weights, optimizer
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    count = sum(torch.Size(shape).numel() for shape in shapes)
    layers = "all" if options.layers is None else f"the first {options.layers}"
    print(
        f"{options.config.stem}, {layers} layers: {count:,} parameters in {len(shapes)} tensors\n"
    )
    print(HEADER)
    base = statistics.median(times["AdamW, fused"])
    for name, values in times.items():
        print(row(name, values, base))
    if share is not None:
        print(f"\npeak extra memory of NorMuon's step: {share:.1%} of its state")


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matrices", type=int, default=512)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--config", type=Path, metavar="FILE", help="a preset, configs/*.toml")
    parser.add_argument("--layers", type=int, help="of the preset; all when left out")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, fp32 weights, {options.rounds} rounds")
    if options.config is not None:
        whole_model(options, device)
        return
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

    print(f"{count} x [{m}, {n}] and {count} x [{n}, {m}]\n")
    print(HEADER)
    base = statistics.median(times["AdamW, fused"])
    for candidate, values in times.items():
        print(row(candidate, values, base))
    if device == "cuda":
        share = extra_memory(candidates["NorMuon"])
        print(f"\npeak extra memory of NorMuon's step: {share:.1%} of its state")


if __name__ == "__main__":
    main()
