"""Opt-in smoke test: `vpmoe pretrain` with GRAPE-M, GRAPE-A, the window schedule, TPA and experts.

    VPMOE_RUN_SMOKE=1 O200K_HARMONY_VOCAB_PATH=data/tokenizer/o200k_base.tiktoken \\
        pytest -q tests/model/test_smoke_grape_tpa_pretrain.py

It trains the tiny preset (every feature on, 64 tokens against a window of 16, 4 heads on 2 KV
groups, NorMuon) on the shipped conversations as a process of its own, and checks the numbers.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    os.environ.get("VPMOE_RUN_SMOKE") != "1", reason="opt-in: set VPMOE_RUN_SMOKE=1"
)

STEPS = 8
_STEP = re.compile(
    r"iteration +(\d+)/ *\d+ .*learning rate: (\S+) .*lm loss: (\S+) .*grad norm: (\S+) .*"
    r"skipped iterations: +(\d+) \| number of nan iterations: +(\d+)"
)


@pytest.fixture(scope="module")
def log(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of one run."""
    vocabulary = os.environ.get("O200K_HARMONY_VOCAB_PATH", "data/tokenizer/o200k_base.tiktoken")
    data = tmp_path_factory.mktemp("smoke") / "data"
    build = ["data", "build", "--input", "data/sample/conversations.jsonl"]
    build += ["--output", str(data), "--valid-fraction", "0"]
    train = ["pretrain", "--config", "configs/vpmoe-tiny.toml", "--synth-kd-data", str(data)]
    train += ["--tokenizer-model", vocabulary, "--train-iters", str(STEPS)]
    train += ["--log-interval", "1", "--lr-warmup-iters", "0", "--optimizer", "normuon"]
    for words in (build, train):
        done = subprocess.run(
            [sys.executable, "-m", "vpmoe.cli", *words],
            cwd=repository,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def test_it_learns(log: str) -> None:
    steps = [
        (int(n), float(rate), float(loss), float(norm), int(skipped), int(nan))
        for n, rate, loss, norm, skipped, nan in _STEP.findall(log)
    ]
    assert [step[0] for step in steps] == list(range(1, STEPS + 1))
    assert not any(skipped or nan for *_, skipped, nan in steps)
    losses = [step[2] for step in steps]
    # An untrained model knows nothing: ln of the padded vocabulary.
    assert losses[0] == pytest.approx(math.log(201088), abs=0.1)
    assert losses[-1] < losses[0] - 0.3
    assert all(0.05 < step[3] < 50 for step in steps)
    assert all(step[1] > 0 for step in steps)


def test_everything_was_on(log: str) -> None:
    flags = dict(re.findall(r"^ +(\w+) \.+ (.+)$", log, flags=re.MULTILINE))
    expected = {
        "position_embedding_type": "grapem",
        "grape_a": "True",
        "no_rope_freq": "4",
        "window_size": "(15, 0)",
        "window_attn_skip_freq": "4",
        "use_tpa": "True",
        "softmax_type": "learnable",
        "group_query_attention": "True",
        "optimizer": "normuon",
    }
    assert {name: flags.get(name) for name in expected} == expected
    assert int(flags["seq_length"]) > 16
    assert int(flags["num_experts"]) > 1
    assert int(flags["num_query_groups"]) < int(flags["num_attention_heads"])
    assert "attention backend of local layers (W=16): eager" in log
    assert "attention backend of global layers: eager" in log
