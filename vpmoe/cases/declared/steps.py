"""What a training meets besides the plain step: skipped steps, idle weights, evaluations, epochs.

Each case sets the flags that it is about itself, so that the preset may have other values.
"""

from __future__ import annotations

from validation.cases.base import Case, Needs
from vpmoe.cases.targets import DECODE, LEADING, MODULES, WARM

# The tiny preset at half its width: a step costs what the vocabulary does.
_SMALL = (
    *("--hidden-size", "32", "--num-attention-heads", "4", "--num-query-groups", "2"),
    *("--kv-channels", "8", "--ffn-hidden-size", "32", "--moe-ffn-hidden-size", "16"),
    *("--moe-shared-expert-intermediate-size", "32", "--num-layers", "4", "--num-experts", "8"),
    *("--moe-layer-freq", "([0]+[1]*3)", "--moe-router-topk", "2"),
    *("--moe-router-num-groups", "2", "--moe-router-group-topk", "1"),
    *("--seq-length", "64", "--window-size", "16", "--window-attn-skip-freq", "4"),
    *("--micro-batch-size", "1", "--global-batch-size", "2"),
)


def _case(
    name: str,
    description: str,
    target: str,
    *flags: str,
    traced_steps: tuple[int, ...] = (),
    **settings: object,
) -> Case:
    return Case(
        name=name,
        description=description,
        lanes=("cpu",),
        target=f"vpmoe.cases.{target}:run",
        settings={
            "preset": "configs/vpmoe-tiny.toml",
            "conversations": "data/sample/conversations.jsonl",
            "flags": [*_SMALL, *flags],
            **settings,
        },
        traced_steps=traced_steps,
        preload=WARM,
        needs=Needs(modules=MODULES),
        decode=DECODE,
        leading=LEADING,
        arithmetic="wide",
    )


CASES = (
    _case(
        "skipped_step",
        "a training whose second step has a NaN in its hidden states, and whose third an infinity "
        "in one expert's gradient: both are skipped and change nothing",
        "skipped",
        *("--train-iters", "4", "--no-check-for-nan-in-loss-and-grad"),
        # A warm-up that each step taken moves on.
        *("--lr-warmup-iters", "8", "--lr-decay-iters", "100"),
        poisoned=[
            {"step": 2, "module": "decoder.layers.1", "value": "nan"},
            {
                "step": 3,
                "parameter": "decoder.layers.2.mlp.experts.local_experts.0.linear_fc2.weight",
                "value": "inf",
            },
        ],
        traced_steps=(4,),
    ),
    _case(
        "idle_weights",
        "a training in which a feed-forward has gradients of zero, one expert never gets a token "
        "and another gets none after the first step: such weights decay, or follow their momentum",
        "idle",
        *("--train-iters", "2", "--weight-decay", "0.1", "--lr-warmup-iters", "0"),
        "--no-check-for-nan-in-loss-and-grad",  # a NaN is for the laws to find
        zeroed="decoder.layers.0.mlp",
        never=[
            {"router": "decoder.layers.2.mlp.router", "expert": 6, "from": 1},
            {"router": "decoder.layers.2.mlp.router", "expert": 5, "from": 2},
        ],
        embedding="embedding.word_embeddings.weight",
        traced_steps=(2,),
    ),
    _case(
        "evaluated",
        "a training with a validation split, evaluated twice: evaluations change nothing",
        "evaluated",
        *("--train-iters", "3", "--reset-position-ids", "--reset-attention-mask"),
        valid_fraction=0.25,
        evaluation=["--eval-interval", "2", "--eval-iters", "2"],
    ),
    _case(
        "epochs",
        "what a training of several epochs reads: their order, their borders, every token id",
        "epochs",
        *("--train-iters", "11", "--eval-iters", "0"),
        *("--reset-position-ids", "--reset-attention-mask"),
        rows=6,
    ),
    _case(
        "longest",
        "each kind of layer at 2,048 tokens in packed documents: outputs and gradients are their "
        "formulas' in fp64",
        "longest",
        *("--seq-length", "2048", "--max-position-embeddings", "2048", "--window-size", "128"),
        *("--tpa-rank", "2", "--tpa-q-rank", "4", "--no-rope-freq", "4", "--grape-a"),
        # A balancing loss whose gradient is as large as the others'.
        *("--moe-router-topk-scaling-factor", "2.5", "--moe-aux-loss-coeff", "30000"),
        *("--eval-iters", "0", "--train-iters", "1"),
        # The first is longer than 1,024 and begins no document in a window of another.
        documents=[1777, 1, 128, 142],
        layers={"local": 0, "global": 3, "dense": 0, "routed": 1},
        scored=24,
    ),
)
