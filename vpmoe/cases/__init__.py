"""vpMoE's cases. Declarations only: nothing of vpMoE or Megatron is imported here."""

from __future__ import annotations

from validation.cases.base import Case, Invariant, Needs
from vpmoe.cases import gpu
from vpmoe.cases.declare import SAME_TRAINING, WHOLE, tiny
from vpmoe.cases.declared import alternatives, commands, data, layouts, refusals, steps, varied
from vpmoe.cases.declared.gated import GATED
from vpmoe.cases.targets import DECODE, LEADING, MODULES, PACED, WARM

_SYNTH_ROWS = "../shared/data/synth_rows_valid.jsonl"

# vpmoe-6b's routing on fewer experts: 8 groups of which a token may use 4, for 4 experts.
_GROUPS = (
    *("--train-iters", "2", "--num-experts", "32", "--moe-router-topk", "4"),
    *("--moe-router-num-groups", "8", "--moe-router-group-topk", "4"),
)

# Experts have a tensor-parallel size of their own, so two ranks are enough for both.
_TP2_EP2 = (
    *("--tensor-model-parallel-size", "2", "--sequence-parallel"),
    *("--expert-model-parallel-size", "2", "--expert-tensor-parallel-size", "1"),
)

__all__ = ["CASES", "GATED"]

CASES = (
    tiny(
        "tiny_moe",
        "the tiny vpMoE, every feature on, trained on the shipped conversations",
        "--train-iters",
        "20",
        traced_steps=(1, 2),
        throughput=PACED,
    ),
    tiny(
        "tiny_dense",
        "the tiny vpMoE with dense layers alone",
        "--train-iters",
        "6",
        "--moe-layer-freq",
        "([0]*4)",
        traced_steps=(1,),
    ),
    tiny(
        "tiny_adam",
        "the tiny vpMoE trained by AdamW alone",
        "--train-iters",
        "4",
        "--optimizer",
        "adam",
    ),
    tiny(
        "tiny_groups",
        "the tiny vpMoE with the routing of vpmoe-6b: 4 experts of 4 of 8 groups, by their best",
        *_GROUPS,
        traced_steps=(1,),
    ),
    tiny(
        "tiny_groups_of_two",
        "the same, with groups that are scored by their best two, as DeepSeek-V3's are",
        *_GROUPS,
        "--moe-router-group-score-topk",
        "2",
        traced_steps=(1,),
    ),
    tiny(
        "tiny_synth",
        "the tiny vpMoE on real SYNTH rows, with span-weighted loss",
        "--train-iters",
        "4",
        "--kd-span-weight-reasoning",
        "0.5",
        settings={"conversations": _SYNTH_ROWS, "profile": "synth_kd_v1"},
        traced_steps=(1,),
        paths=(_SYNTH_ROWS,),
    ),
    tiny(
        "resume",
        "the tiny vpMoE saved after a step and resumed: the straight run, bit for bit",
        "--train-iters",
        "20",
        settings={"resume_after": 1, "stop_after": 4},
        traced_steps=(2,),
        invariant=Invariant(
            reference="tiny_moe",
            curves={
                "lm_loss": 0.0,
                "grad_norm": 0.0,
                "learning_rate": 0.0,
                "aux_loss/*": 0.0,
                "expert_load/*": 0.0,
                "update_rms/*": 0.0,
                "parameter_grad_norm/*": 0.0,
            },
            events=0.0,
        ),
    ),
    tiny(
        "one_batch",
        "the tiny vpMoE whose two micro-batches are one: the same training",
        "--train-iters",
        "3",
        "--micro-batch-size",
        "2",
        invariant=Invariant(reference="tiny_moe", curves={**SAME_TRAINING, **WHOLE}),
    ),
    Case(
        name="laws",
        description="invariants of the built model: permutation, causality, padding, packing, "
        "shift, window, loss scale, accumulation",
        lanes=("cpu",),
        target="vpmoe.cases.laws:run",
        settings={
            "preset": "configs/vpmoe-tiny.toml",
            "conversations": "data/sample/conversations.jsonl",
        },
        preload=WARM,
        needs=Needs(modules=MODULES),
        arithmetic="wide",
    ),
    Case(
        name="export",
        description="the tiny vpMoE, trained for a moment, exported, computed without Megatron and "
        "imported: the same logits, the same bits, and the tokens that it decodes",
        lanes=("cpu",),
        target="vpmoe.cases.export:run",
        settings={
            "preset": "configs/vpmoe-tiny.toml",
            "conversations": "data/sample/conversations.jsonl",
            "flags": ["--train-iters", "2", "--global-batch-size", "1"],
            "prompt": "The rain in Spain",
            "tokens": 8,
        },
        traced_steps=(2,),
        preload=WARM,
        needs=Needs(modules=MODULES),
        decode=DECODE,
        leading=LEADING,
        arithmetic="wide",
    ),
    *layouts.CASES,
    Case(
        name="printed",
        description="what the tiny vpMoE prints and logs, after a start and after a resume",
        lanes=("cpu",),
        target="vpmoe.cases.printed:run",
        settings={
            "preset": "configs/vpmoe-tiny.toml",
            "conversations": "data/sample/conversations.jsonl",
            "flags": ["--train-iters", "4"],
            "save_after": 2,
            "log_intervals": [1, 2],
        },
        preload=WARM,
        needs=Needs(modules=MODULES),
        arithmetic="wide",
    ),
    Case(
        name="schedules",
        description="layers, windows, slopes, frequencies and optimizer routing of the presets; "
        "parameter groups and marks, on one rank and at TP 2 with EP 2",
        lanes=("cpu",),
        target="vpmoe.cases.schedules:run",
        settings={
            "presets": ["configs/vpmoe-dev.toml", "configs/vpmoe-6b.toml"],
            "probed": {"vpmoe-6b": [3, 4]},
            "length": 136,
            "layouts": {"tp2_ep2": {"flags": _TP2_EP2, "ranks": 2}},
        },
        preload=WARM,
        needs=Needs(modules=MODULES),
        arithmetic="wide",
    ),
    *commands.CASES,
    *data.CASES,
    *steps.CASES,
    *varied.CASES,
    *alternatives.CASES,
    *refusals.CASES,
    *gpu.CASES,
)
