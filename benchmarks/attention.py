"""Attention of a vpMoE layer, forward and backward, against its peers in one interleaved run.

    python benchmarks/attention.py [--length 4096] [--batch 4] [--rounds 50]

Local layers (W = 128) and global ones (ALiBi), bf16, 8 heads, 2 KV groups, head dimension 128.
Peers that cannot do all of it are measured with what they can do, which the table says. Times are
medians of CUDA-event timings, the spread is (p90 - p10) / median.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from functools import partial

import torch

from vpmoe.model.attention.backends import TransformerEngineBackend
from vpmoe.model.attention.eager import eager_attention
from vpmoe.model.attention.pattern import AttentionPattern
from vpmoe.model.attention.triton_kernel import triton_attention
from vpmoe.model.grape import alibi_slopes

HEADS, GROUPS, CHANNELS = 8, 2, 128


def flex_peer(
    window: int | None, slopes: torch.Tensor | None, length: int
) -> Callable[..., object]:
    """torch's FlexAttention with window or ALiBi, without the softmax offset."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def mask(b: object, h: object, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        causal = i >= j
        return causal if window is None else causal & (i - j < window)

    def score(x: torch.Tensor, b: object, h: int, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return x - slopes[h] * (i - j)  # type: ignore[index]

    blocks = create_block_mask(mask, None, None, length, length, device="cuda")
    compiled = torch.compile(flex_attention)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object) -> torch.Tensor:
        out = compiled(
            *(x.permute(1, 2, 0, 3) for x in (q, k, v)),
            score_mod=score if slopes is not None else None,
            block_mask=blocks,
            scale=1 / math.sqrt(CHANNELS),
            enable_gqa=True,
        )
        return out.permute(2, 0, 1, 3).reshape(q.shape[0], q.shape[1], -1)

    return attend


def measure(
    candidates: dict[str, Callable[[], None]], rounds: int
) -> dict[str, tuple[float, float]]:
    """Median milliseconds and spread of each candidate, one of each in every round."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in range(rounds + 5):
        for name, candidate in candidates.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            candidate()
            end.record()
            torch.cuda.synchronize()
            if run >= 5:
                times[name].append(start.elapsed_time(end))
    return {
        name: (
            statistics.median(found),
            (statistics.quantiles(found, n=10)[8] - statistics.quantiles(found, n=10)[0])
            / statistics.median(found),
        )
        for name, found in times.items()
    }


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"T={options.length}, B={options.batch}, {HEADS} heads, {GROUPS} groups, d={CHANNELS}")
    for kind in ("local", "global"):
        slopes = alibi_slopes(HEADS) if kind == "global" else None
        window = 128 if kind == "local" else None
        pattern = AttentionPattern(1 / math.sqrt(CHANNELS), window, slopes, True)
        shape = (options.length, options.batch)
        tensors = [
            torch.randn(*shape, heads, CHANNELS, device="cuda", dtype=torch.bfloat16)
            for heads in (HEADS, GROUPS, GROUPS)
        ]
        tensors.append(torch.randn(HEADS, device="cuda", dtype=torch.bfloat16))
        for tensor in tensors:
            tensor.requires_grad_()
        grad = torch.randn(*shape, HEADS * CHANNELS, device="cuda", dtype=torch.bfloat16)
        documents = torch.zeros(options.batch, options.length, dtype=torch.int32, device="cuda")

        def step(
            attend: Callable[..., torch.Tensor],
            documents: torch.Tensor | None = None,
            tensors: list[torch.Tensor] = tensors,
            grad: torch.Tensor = grad,
            pattern: AttentionPattern = pattern,
        ) -> None:
            attend(*tensors, documents, pattern).backward(grad)

        slope_tensor = None if slopes is None else torch.tensor(slopes, device="cuda")
        flex = flex_peer(window, slope_tensor, options.length)
        candidates = {
            "triton": partial(step, triton_attention),
            "triton with documents": partial(step, triton_attention, documents),
            "flex without offset": partial(step, flex),
            "eager fp32": partial(step, eager_attention),
        }
        if kind == "local":
            try:
                import transformer_engine  # noqa: F401

                candidates["te"] = partial(step, TransformerEngineBackend().attend)
            except ImportError:
                print("te: not installed")
        for name, (median, spread) in measure(candidates, options.rounds).items():
            print(f"{kind:<7} {name:<24} {median:8.3f} ms  +-{spread:5.1%}")


if __name__ == "__main__":
    main()
