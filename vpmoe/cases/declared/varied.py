"""Cases whose values differ: ramps, odd sizes, features left out, bf16."""

from __future__ import annotations

from validation.cases.base import Case
from vpmoe.cases.declare import tiny

_PRESETS = "vpmoe/cases/presets"

# The tiny preset's first dense layer and one of experts, local and global.
_TWO_LAYERS = (
    *("--num-layers", "2", "--moe-layer-freq", "([0]+[1])"),
    *("--window-attn-skip-freq", "2", "--no-rope-freq", "2"),
)

CASES: tuple[Case, ...] = (
    tiny(
        "ramps",
        "two layers of the tiny vpMoE: warm-up, cosine decay to the minimum and its tail, growing "
        "weight decay, another learning rate of embeddings and output",
        *_TWO_LAYERS,
        *("--train-iters", "7"),
        *("--lr-warmup-iters", "2", "--lr-warmup-init", "2e-4", "--lr-decay-iters", "6"),
        *("--decoupled-lr", "1.5e-3", "--decoupled-min-lr", "1e-4"),
        *("--start-weight-decay", "0.05", "--end-weight-decay", "0.3"),
        *("--weight-decay-incr-style", "cosine", "--seed", "98"),
    ),
    tiny(
        "ramps_by_samples",
        "a dense layer with biases, its ramps counted in samples: a growing batch, warm-up, a "
        "constant rate that decays at the end (WSD), linearly growing weight decay",
        settings={"preset": f"{_PRESETS}/ramps.toml"},
    ),
    tiny(
        "odd",
        "every feature at sizes that are no powers of two: 6 heads in 3 groups, 5 planes, 5 layers",
        settings={"preset": f"{_PRESETS}/odd.toml"},
        traced_steps=(1,),
    ),
    tiny(
        "plain",
        "experts without vpMoE's features: 3 heads, RoPE, softmax routing, GELU, dropout",
        settings={"preset": f"{_PRESETS}/plain.toml"},
        traced_steps=(3,),
    ),
    tiny(
        "tiny_bf16",
        "two bf16 steps of the tiny vpMoE",
        *("--train-iters", "2", "--bf16", "--seed", "606"),
        traced_steps=(1,),
    ),
)
