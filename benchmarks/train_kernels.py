"""The fused kernels of a training step by themselves, at vpmoe-6b's sizes: needs a GPU.

    python -m benchmarks.train_kernels [--calls 20]

16,384 tokens, bf16, random data. Device time: what the kernels of a call take together, by the
profiler, whatever the host needs to queue them. Medians and extremes of three profiles.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from vpmoe.model.attention.pattern import AttentionPattern
from vpmoe.model.attention.triton_kernel import triton_attention
from vpmoe.model.cross_entropy import chunked_cross_entropy
from vpmoe.model.cross_entropy_kernel import differentiate_rows_, row_statistics
from vpmoe.model.experts import grouped_linear
from vpmoe.model.grape import alibi_slopes
from vpmoe.model.moe.permutation_kernel import (
    permute,
    plan_permutation,
    unpermute,
    weighted_squared_relu,
)
from vpmoe.model.moe.routing_kernel import RoutingRule, route
from vpmoe.model.tpa_kernel import TensorProductShape, compose_norm_rotate

LENGTH, BATCH, HIDDEN, VOCABULARY = 2048, 8, 1024, 201088
EXPERTS, TOPK, WIDTH = 256, 4, 128
CHUNK = 4096
TOKENS = LENGTH * BATCH
Work = dict[str, Callable[[], object]]


def random(*shape: int, scale: float = 1.0, trains: bool = True) -> torch.Tensor:
    """Normal bf16 numbers on the device."""
    values = (torch.randn(shape, device="cuda") * scale).bfloat16()
    return values.requires_grad_(trains)


def loss() -> Work:
    """Output layer and loss, and the parts of a chunk."""
    hidden, weight = random(TOKENS, HIDDEN), random(VOCABULARY, HIDDEN, scale=0.02)
    labels = torch.randint(VOCABULARY, (TOKENS,), device="cuda")
    weights = torch.rand(TOKENS, device="cuda")

    def train(known: bool) -> object:
        losses = chunked_cross_entropy(hidden, weight, labels, weights if known else None)
        return torch.autograd.grad(losses, (hidden, weight), weights)

    logits = torch.empty((CHUNK, VOCABULARY), dtype=torch.bfloat16, device="cuda")
    total = torch.zeros((VOCABULARY, HIDDEN), device="cuda")
    x, w, y, u = hidden.detach()[:CHUNK], weight.detach(), labels[:CHUNK], weights[:CHUNK]
    normaliser = torch.full((CHUNK,), 20.0, device="cuda")
    return {
        "loss, weights known": partial(train, True),
        "loss, weights not known": partial(train, False),
        "chunk: logits": lambda: torch.mm(x, w.t(), out=logits),
        "chunk: statistics": lambda: row_statistics(logits, y, 0),
        "chunk: gradient": lambda: differentiate_rows_(logits, y, normaliser, u, 0),
        "chunk: hidden's gradient": lambda: logits @ w,
        "chunk: weight's gradient": lambda: torch.addmm(
            total, logits.t(), x, out_dtype=torch.float32, out=total
        ),
    }


def experts() -> Work:
    """Router without its products, experts with permutation, and their parts."""
    rule = RoutingRule(topk=TOPK, groups=8, group_topk=4, group_score_topk=1, scaling=2.5)
    logits = torch.randn((LENGTH, BATCH, EXPERTS), device="cuda", requires_grad=True)
    bias = torch.randn(EXPERTS, device="cuda") * 0.1

    def train_router() -> object:
        probs, _, _, scores, counts = route(logits, bias, rule, True)
        return torch.autograd.grad((probs, scores), logits, (probs.detach(), counts))

    chosen, choices, *_ = route(logits, bias, rule, False)
    probs = chosen.detach().requires_grad_()
    tokens, upstream = random(TOKENS, HIDDEN), random(TOKENS, HIDDEN, trains=False)
    first, second = (
        random(EXPERTS, *shape, scale=0.02) for shape in ((WIDTH, HIDDEN), (HIDDEN, WIDTH))
    )

    def compute() -> torch.Tensor:
        plan, permuted = plan_permutation(probs, choices, TOPK)
        ends = plan.tokens_per_expert.cumsum(0, dtype=torch.int32)
        hidden = grouped_linear(permute(tokens, plan.positions), first, ends)
        rows = grouped_linear(weighted_squared_relu(hidden, permuted), second, ends)
        return unpermute(rows, plan.positions)

    def train() -> object:
        return torch.autograd.grad(compute(), (tokens, probs, first, second), upstream)

    with torch.no_grad():
        plan, permuted = plan_permutation(probs, choices, TOPK)
        ends = plan.tokens_per_expert.cumsum(0, dtype=torch.int32)
        rows = permute(tokens, plan.positions)
        hidden = grouped_linear(rows, first, ends)
    w1, w2, x, p = first.detach(), second.detach(), tokens.detach(), probs.detach()
    return {
        "router": train_router,
        "router, forward": lambda: route(logits, bias, rule, True),
        "experts": train,
        "experts, forward": compute,
        "places": lambda: plan_permutation(p, choices, TOPK),
        "tokens to their places": lambda: permute(x, plan.positions),
        "first product": lambda: grouped_linear(rows, w1, ends),
        "relu^2 and weight": lambda: weighted_squared_relu(hidden, permuted),
        "second product": lambda: grouped_linear(hidden, w2, ends),
        "results added up": lambda: unpermute(rows, plan.positions),
        "first weight's gradient": lambda: functional.grouped_mm(hidden.t(), rows, offs=ends),
        "second weight's gradient": lambda: functional.grouped_mm(rows.t(), hidden, offs=ends),
    }


def tensor_products() -> Work:
    """TPA's composition, QK-norm and rotation."""
    shape = TensorProductShape(8, 2, 4, 2, 128, 1e-5)
    angles = torch.rand((LENGTH, BATCH, 1, 64), device="cuda") * 6
    leaves = (
        random(LENGTH, BATCH, shape.width),
        random(128),
        random(128),
        torch.stack((angles.cos(), angles.sin())).requires_grad_(),
    )
    upstream = [random(LENGTH, BATCH, heads, 128, trains=False) for heads in (8, 2, 2)]

    def forward() -> tuple[torch.Tensor, ...]:
        return compose_norm_rotate(*leaves, shape)

    return {
        "TPA": lambda: torch.autograd.grad(forward(), leaves, upstream),
        "TPA, forward": forward,
    }


def attention() -> Work:
    """A local and a global layer's attention with learnable softmax offset, 4 x 4,096 tokens."""
    query = random(4096, 4, 8, 128)
    key, value = (random(4096, 4, 2, 128) for _ in range(2))
    offset = torch.randn(8, device="cuda", requires_grad=True)
    upstream = random(4096, 4, 1024, trains=False)

    def train(pattern: AttentionPattern) -> object:
        out = triton_attention(query, key, value, offset, None, pattern)
        return torch.autograd.grad(out, (query, key, value, offset), upstream)

    return {
        "attention, local": partial(train, AttentionPattern(128**-0.5, 128, None, True)),
        "attention, global": partial(
            train, AttentionPattern(128**-0.5, None, alibi_slopes(8), True)
        ),
    }


def device_milliseconds(work: Callable[[], object], calls: int) -> float:
    """What the kernels of a call take together."""
    work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            work()
        torch.cuda.synchronize()
    return sum(e.self_device_time_total for e in profiler.key_averages()) / calls / 1e3


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=20, help="of a profile (default: 20)")
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| forward and backward unless stated | ms | least | most |")
    print("| --- | --- | --- | --- |")
    for family in (loss, experts, tensor_products, attention):
        for name, work in family().items():
            times = [device_milliseconds(work, options.calls) for _ in range(3)]
            print(
                f"| {name} | {statistics.median(times):.3f} | {min(times):.3f} | "
                f"{max(times):.3f} |",
                flush=True,
            )
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
