"""Core attention: softmax offset, documents, windows by probing, the choice of a backend."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vpmoe.model.arguments import ATTENTION_KERNELS
from vpmoe.model.attention import backends
from vpmoe.model.attention.backends import BACKENDS, choose_backend
from vpmoe.model.attention.eager import eager_attention
from vpmoe.model.attention.pattern import AttentionPattern


def gpt_oss_reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor, window: int | None
) -> torch.Tensor:
    """GPT-OSS's attention for one sequence, from its definition.

    Scores of every key and one sink logit a head go through one softmax; the sink's probability is
    dropped. gpt-oss masks |{j : i - j >= window}| in its sliding layers.

    Args:
        q: [s, h, d]; k, v: [s, g, d]; sinks: [h].
    """
    length, heads, channels = q.shape
    out = torch.empty_like(q)
    for h in range(heads):
        g = h // (heads // k.shape[1])
        for i in range(length):
            first = 0 if window is None else max(0, i - window + 1)
            scores = (k[first : i + 1, g] @ q[i, h]) / math.sqrt(channels)
            weights = torch.softmax(torch.cat((scores, sinks[h, None])), 0)[:-1]
            out[i, h] = weights @ v[first : i + 1, g]
    return out.reshape(length, heads * channels)


@pytest.mark.parametrize("window", [None, 1, 3])
def test_learnable_softmax_equals_gpt_oss(window: int | None) -> None:
    length, heads, groups, channels = 7, 4, 2, 8
    tensors = [
        torch.randn(length, n, channels, dtype=torch.float64) for n in (heads, groups, groups)
    ]
    tensors.append(torch.randn(heads, dtype=torch.float64))
    grad = torch.randn(length, heads * channels, dtype=torch.float64)
    results = []
    for ours in (False, True):
        q, k, v, sinks = (t.clone().requires_grad_() for t in tensors)
        if ours:
            pattern = AttentionPattern(channels**-0.5, window, has_offset=True)
            batched = (x[:, None] for x in (q, k, v))
            out = eager_attention(*batched, sinks, None, pattern)[:, 0]
        else:
            out = gpt_oss_reference(q, k, v, sinks, window)
        out.backward(grad)
        results.append([out.detach(), *(t.grad for t in (q, k, v, sinks))])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)


def test_offset_is_a_sigmoid_of_the_log_sum_exp() -> None:
    q, k, v = torch.randn(3, 5, 1, 2, 8, dtype=torch.float64)
    offset = torch.tensor([0.3, -1.0], dtype=torch.float64)
    scale = 8**-0.5
    with_offset = eager_attention(q, k, v, offset, None, AttentionPattern(scale, has_offset=True))
    without = eager_attention(q, k, v, None, None, AttentionPattern(scale))
    logits = torch.einsum("ibhd,jbhd->hij", q, k) * scale
    lse = logits.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf).logsumexp(-1)
    factor = torch.sigmoid(lse - offset[:, None]).T[:, None, :, None]
    torch.testing.assert_close(
        with_offset.view(5, 1, 2, 8), without.view(5, 1, 2, 8) * factor, atol=1e-12, rtol=1e-12
    )


def test_documents_do_not_see_each_other() -> None:
    q, k, v = torch.randn(3, 8, 1, 2, 8)
    pattern = AttentionPattern(1.0, slopes=(0.5, 0.25))
    ids = torch.tensor([[4, 4, 4, 9, 9, 9, 9, 2]], dtype=torch.int32)
    together = eager_attention(q, k, v, None, ids, pattern)
    for part in (slice(0, 3), slice(3, 7), slice(7, 8)):
        alone = eager_attention(q[part], k[part], v[part], None, None, pattern)
        torch.testing.assert_close(together[part], alone)


def test_auto_takes_eager_on_a_cpu() -> None:
    query = torch.randn(4, 1, 2, 16)
    assert choose_backend("auto", AttentionPattern(1.0), query, None).name == "eager"


@pytest.mark.parametrize("name", ["triton", "te"])
def test_a_backend_that_cannot_is_refused_with_the_reason(name: str) -> None:
    query = torch.randn(4, 1, 2, 16)
    with pytest.raises(ValueError, match=f"--attention-kernel {name}.*needs a CUDA device"):
        choose_backend(name, AttentionPattern(1.0), query, None)


class OnCuda:
    """A query as the refusals see it, on a machine without CUDA."""

    is_cuda = True

    def __init__(self, channels: int, dtype: torch.dtype) -> None:
        self.shape, self.dtype = (4, 1, 2, channels), dtype


@pytest.mark.parametrize(
    ("name", "pattern", "channels", "dtype", "documents", "reason"),
    [
        ("triton", AttentionPattern(1.0), 48, torch.bfloat16, False, "head dimension 48"),
        ("triton", AttentionPattern(1.0), 8, torch.bfloat16, False, "head dimension 8"),
        ("triton", AttentionPattern(1.0), 64, torch.float64, False, "not torch.float64"),
        ("te", AttentionPattern(1.0), 64, torch.float32, False, "fp16 or bf16"),
        ("te", AttentionPattern(1.0, slopes=(1.0, 0.5)), 64, torch.bfloat16, False, "ALiBi"),
        ("te", AttentionPattern(1.0), 64, torch.bfloat16, True, "THD"),
    ],
)
def test_reasons(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    pattern: AttentionPattern,
    channels: int,
    dtype: torch.dtype,
    documents: bool,
    reason: str,
) -> None:
    monkeypatch.setattr(backends, "_installed", lambda _: True)
    backend = next(b for b in BACKENDS if b.name == name)
    ids = torch.zeros(1, 4, dtype=torch.int32) if documents else None
    found = backend.unsupported_reason(pattern, OnCuda(channels, dtype), ids)  # type: ignore[arg-type]
    assert found is not None
    assert reason in found


def probed_keys(pattern: AttentionPattern, length: int) -> list[list[int]]:
    """Which keys move each query's output, read off the gradients of the values and of the keys."""
    q, k, v = torch.randn(3, length, 1, 1, 8, dtype=torch.float64)
    k.requires_grad_()
    v.requires_grad_()
    out = eager_attention(q, k, v, None, None, pattern)
    keys = []
    for i in range(length):
        by_value, by_key = torch.autograd.grad(out[i].sum(), (v, k), retain_graph=True)
        moved = [g.abs().sum((1, 2, 3)).nonzero().flatten().tolist() for g in (by_value, by_key)]
        if len(moved[0]) > 1:  # the softmax of a single key does not depend on it
            assert moved[0] == moved[1]
        keys.append(moved[0])
    return keys


@pytest.mark.parametrize("window", [1, 2, 7, 15, 16, 17])
def test_eager_sees_exactly_the_window(window: int) -> None:
    length = 16
    expected = [list(range(max(0, i - window + 1), i + 1)) for i in range(length)]
    assert probed_keys(AttentionPattern(1.0, window), length) == expected


def test_triton_kernel_in_the_interpreter(repository: Path) -> None:
    """The kernel's own source, executed on the CPU by Triton's interpreter, against eager fp32."""
    script = Path(__file__).parent / "interpreted_kernel.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env=environment,
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_backend_can_be_asked_for_by_name() -> None:
    assert sorted(ATTENTION_KERNELS) == sorted(["auto", *(backend.name for backend in BACKENDS)])
