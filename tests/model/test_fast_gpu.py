"""On a GPU: the fused kernels against fp64 and Megatron's functions, twice with the same bits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from vpmoe.model import cross_entropy
from vpmoe.model.cross_entropy import chunked_cross_entropy
from vpmoe.model.grape import rotate

pytestmark = pytest.mark.gpu


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error in norm."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def differentiated(
    function: Callable[..., Sequence[torch.Tensor]],
    leaves: Sequence[torch.Tensor],
    upstream: Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """Outputs and gradients; the same function, run twice, must give the same bits."""
    runs = []
    for _ in range(2):
        inputs = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        outputs = list(function(*inputs))
        grads = upstream or [torch.ones_like(out) for out in outputs]
        runs.append([*outputs, *torch.autograd.grad(outputs, inputs, grads)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    return runs[0]


@pytest.mark.parametrize("known", [False, True])
def test_chunked_loss_agrees_with_fp64(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 logits: 1.55e-4 of the losses' norm, 1e-2 of the gradients'.

    A loss is off by the rounding of its label's logit; the softmax averages the other logits' away
    (1% of it). Logits have deviation 0.05 sqrt(256) = 0.8 and are off by ulp / sqrt(12), where an
    ulp is 2^-7 of the power of two below: 1.32e-3 over a normal distribution. Losses are
    log(20108) + 0.8^2 / 2 = 10.23 with deviation 0.8, so 1.29e-4 of the norm is expected. Its
    deviation over draws of 1,000 labels is 3.7% of that, by ulp's fourth moment; five are allowed,
    and 1e-6 for sums in fp32.
    """
    tokens, width, vocabulary = 1000, 256, 20108
    monkeypatch.setattr(cross_entropy, "_CHUNK_BYTES", 300 * vocabulary * 2)
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, device="cuda").bfloat16()
    weight = (torch.randn(vocabulary, width, device="cuda") * 0.05).bfloat16()
    labels = torch.randint(vocabulary, (tokens,), device="cuda")
    weights = torch.rand(tokens, device="cuda")
    weights[::3] = 0
    losses, *gradients = differentiated(
        lambda h, w: [chunked_cross_entropy(h, w, labels, weights if known else None)],
        [hidden, weight],
        [weights * 0.3],
    )
    wide = [t.double().requires_grad_() for t in (hidden, weight)]
    expected = functional.cross_entropy(wide[0] @ wide[1].t(), labels, reduction="none")
    assert error(losses, expected) < 1.55e-4
    wanted = torch.autograd.grad((expected * weights * 0.3).sum(), wide)
    for found, exact in zip(gradients, wanted, strict=True):
        assert error(found, exact) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_gradients_have_the_bits_of_torch(dtype: torch.dtype) -> None:
    """The fp32 product is rounded once; a size that no block divides, in either order of memory."""
    from vpmoe.model.cross_entropy_kernel import scaled

    torch.manual_seed(0)
    factor = torch.rand(1, device="cuda")
    tensor = torch.randn(123, 4567, device="cuda").to(dtype)
    for one in (tensor, tensor.t()):
        assert torch.equal(scaled(one, factor, torch.bfloat16), (one * factor).bfloat16())


def test_routing_agrees_with_megatron() -> None:
    """vpmoe-6b's rule, 16,384 tokens."""
    from megatron.core.transformer.moe.moe_utils import topk_routing_with_score_function

    from vpmoe.model.moe.routing_kernel import RoutingRule, route

    torch.manual_seed(0)
    logits = torch.randn(2048, 8, 256, device="cuda")
    bias = torch.randn(256, device="cuda") * 0.1
    probs, gradient = differentiated(
        lambda x: [route(x, bias, RoutingRule(4, 8, 4, 1, 2.5), True)[0].square()], [logits]
    )
    leaf = logits.clone().requires_grad_()
    expected, expected_map = topk_routing_with_score_function(
        leaf.view(-1, 256),
        4,
        num_groups=8,
        group_topk=4,
        scaling_factor=2.5,
        score_function="sigmoid",
        expert_bias=bias,
    )
    choices = route(logits, bias, RoutingRule(4, 8, 4, 1, 2.5), False)[1]
    assert torch.equal(choices, expected_map)
    assert error(probs, expected.square()) < 1e-6
    (wanted,) = torch.autograd.grad(expected.square().sum(), leaf)
    assert error(gradient, wanted) < 1e-5


def test_experts_agree_with_fp32_and_wait_for_nothing() -> None:
    """Permutation, grouped products and weighted squares; an expert gets no token."""
    from vpmoe.model.experts import grouped_linear
    from vpmoe.model.moe.permutation_kernel import (
        permute,
        plan_permutation,
        unpermute,
        weighted_squared_relu,
    )

    n, experts, topk, width, inner = 1000, 16, 2, 256, 128
    torch.manual_seed(0)
    scores = torch.randn(n, experts, device="cuda")
    scores[:, 3] = -100
    routing_map = torch.zeros_like(scores, dtype=torch.bool)
    routing_map.scatter_(1, scores.topk(topk).indices, value=True)
    probs = torch.rand(n, experts, device="cuda") * routing_map
    tokens = torch.randn(n, width, device="cuda").bfloat16()
    first = (torch.randn(experts, inner, width, device="cuda") * 0.05).bfloat16()
    second = (torch.randn(experts, width, inner, device="cuda") * 0.05).bfloat16()

    def fused(
        x: torch.Tensor, p: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor
    ) -> list[torch.Tensor]:
        plan, permuted = plan_permutation(p, routing_map, topk)
        ends = plan.tokens_per_expert.cumsum(0, dtype=torch.int32)
        hidden = grouped_linear(permute(x, plan.positions), w1, ends)
        rows = grouped_linear(weighted_squared_relu(hidden, permuted), w2, ends)
        return [unpermute(rows, plan.positions)]

    def reference(
        x: torch.Tensor, p: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor
    ) -> torch.Tensor:
        hidden = functional.relu(torch.einsum("nh,efh->nef", x, w1)).square()
        return torch.einsum("nef,ehf->nh", hidden * p[..., None], w2)

    upstream = torch.randn(n, width, device="cuda").bfloat16()
    leaves = [tokens, probs, first, second]
    differentiated(fused, leaves, [upstream])  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        (out,) = fused(*inputs)
        gradients = torch.autograd.grad(out, inputs, upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    wide = [leaf.float().requires_grad_() for leaf in leaves]
    expected = reference(*wide)
    wanted = list(torch.autograd.grad(expected, wide, upstream.float()))
    wanted[1] = wanted[1] * routing_map
    assert error(out, expected) < 1e-2
    for found, exact in zip(gradients, wanted, strict=True):
        assert error(found, exact) < 1e-2


def test_tensor_products_agree_with_fp64() -> None:
    """vpmoe-6b's shape and tokens that no tile divides: one rounding to bf16."""
    from vpmoe.model.tpa_kernel import TensorProductShape, compose_norm_rotate

    shape = TensorProductShape(8, 2, 4, 2, 128, 1e-5)
    torch.manual_seed(0)
    angles = torch.rand(67, 3, 1, 64, device="cuda") * 6
    leaves = [
        torch.randn(67, 3, shape.width, device="cuda").bfloat16(),
        torch.rand(128, device="cuda").bfloat16(),
        torch.rand(128, device="cuda").bfloat16(),
        torch.stack((angles.cos(), angles.sin())),
    ]

    def unfused(
        factors: torch.Tensor, q_weight: torch.Tensor, k_weight: torch.Tensor, r: torch.Tensor
    ) -> list[torch.Tensor]:
        a_q, a_k, a_v, b_q, b_k, b_v = factors.split([32, 4, 4, 512, 256, 256], dim=-1)
        query, key, value = (
            a.unflatten(-1, (heads, rank)) @ b.unflatten(-1, (rank, 128)) / rank
            for a, b, heads, rank in ((a_q, b_q, 8, 4), (a_k, b_k, 2, 2), (a_v, b_v, 2, 2))
        )
        query = rotate(functional.rms_norm(query, (128,), q_weight, 1e-5), r)
        return [query, rotate(functional.rms_norm(key, (128,), k_weight, 1e-5), r), value]

    upstream = [torch.randn(67, 3, heads, 128, device="cuda").bfloat16() for heads in (8, 2, 2)]
    found = differentiated(lambda *x: compose_norm_rotate(*x, shape), leaves, upstream)
    wide = [leaf.double().requires_grad_() for leaf in leaves]
    outputs = unfused(*wide)
    wanted = [*outputs, *torch.autograd.grad(outputs, wide, [g.double() for g in upstream])]
    for one, exact in zip(found, wanted, strict=True):
        assert error(one, exact) < 5e-3


def test_a_graph_trains_as_no_graph_does(tmp_path: Path) -> None:
    """What Megatron prints of vpMoE-dev, losses to gradient norm, before and after captures."""
    from vpmoe.data.build import build_dataset

    root = Path(__file__).parents[2]
    data = tmp_path / "data"
    conversations = [root / "data" / "sample" / "conversations.jsonl"]
    build_dataset(conversations, data, workers=1, valid_fraction=0.0)
    flags = (
        *("--config", "configs/vpmoe-dev.toml", "--synth-kd-data", str(data)),
        *("--train-iters", "8", "--micro-batch-size", "2", "--global-batch-size", "4"),
        *("--loss-kernel", "chunked", "--expert-kernel", "fused", "--attention-kernel", "triton"),
        "--no-check-for-nan-in-loss-and-grad",
    )
    curves = []
    optimizer = ("--optimizer-cuda-graph", "--cuda-graph-warmup-steps", "2")
    for more in ((), optimizer, ("--cuda-graph-impl", "full_iteration", *optimizer)):
        done = subprocess.run(
            [sys.executable, "-m", "vpmoe.pretrain", *flags, *more],
            cwd=root,
            env={**os.environ, "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        curves.append(re.findall(r"lm loss: .*?grad norm: +\S+", done.stdout))
    assert len(curves[0]) == 8
    assert len(set(curves[0])) == 8
    assert curves[0] == curves[1] == curves[2]
