"""vpMoE's cases. Declarations only: nothing of vpMoE or Megatron is imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from validation.cases.base import Case, Invariant, Needs
from validation.cases.gated import Gated
from vpmoe.cases import gpu
from vpmoe.cases.targets import DECODE, LEADING, MODULES, PACED, TRAINING, WARM

_SYNTH_ROWS = "../shared/data/synth_rows_valid.jsonl"

# Another layout sums in another order; nothing else may differ over its few steps. In multiples of
# fp32's epsilon: a mean of some hundred rounded numbers, a norm of sums over 201,088 logits.
# Megatron adds up the router's losses over the micro-batches of a rank, so these depend on the
# number of replicas.
_EPSILON = 2.0**-23
_SAME_TRAINING = {
    "lm_loss": 64 * _EPSILON,
    "grad_norm": 512 * _EPSILON,
    "learning_rate": 0.0,
}
_ONE_REPLICA = {**_SAME_TRAINING, "aux_loss/*": 64 * _EPSILON}
# Where every rank has all layers, and where it has whole tensors.
_BIASES = {"expert_bias/*": 0.0}
_WHOLE = {**_BIASES, "parameter_grad_norm/*": 256 * _EPSILON}

# vpmoe-6b's routing on fewer experts: 8 groups of which a token may use 4, for 4 experts.
_GROUPS = (
    *("--train-iters", "2", "--num-experts", "32", "--moe-router-topk", "4"),
    *("--moe-router-num-groups", "8", "--moe-router-group-topk", "4"),
)


def _tiny(
    name: str,
    description: str,
    *flags: str,
    settings: Mapping[str, Any] | None = None,
    traced_steps: Sequence[int] = (),
    processes: int = 1,
    invariant: Invariant | None = None,
    paths: Sequence[str] = (),
    throughput: str | None = None,
) -> Case:
    """A training of the tiny preset, on the shipped conversations unless the settings say else."""
    base = {
        "preset": "configs/vpmoe-tiny.toml",
        "conversations": "data/sample/conversations.jsonl",
        "flags": list(flags),
    }
    return Case(
        name=name,
        description=description,
        lanes=("cpu",),
        target=TRAINING,
        settings={**base, **(settings or {})},
        traced_steps=traced_steps,
        processes=processes,
        preload=WARM,
        needs=Needs(modules=MODULES, paths=paths),
        invariant=invariant,
        decode=DECODE,
        leading=LEADING,
        throughput=throughput,
        arithmetic="wide",
    )


def _layout(
    name: str,
    description: str,
    *flags: str,
    same: Mapping[str, float],
    reference: str = "tiny_moe",
) -> Case:
    return _tiny(
        f"layout_{name}",
        f"the tiny vpMoE on two processes, {description}: the training of one process",
        "--train-iters",
        "3",
        *flags,
        processes=2,
        invariant=Invariant(reference=reference, curves=same),
    )


_TRITON = "Triton compiles its kernels, which never run as Python, and their callers need a GPU"
GATED = Gated(
    packages=("vpmoe",),
    fields="vpmoe.cases.fields:fields",
    omitted={
        "vpmoe/model/attention/triton_kernel.py": _TRITON,
        "vpmoe/model/cross_entropy_kernel.py": _TRITON,
        "vpmoe/model/moe/permutation_kernel.py": _TRITON,
        "vpmoe/model/moe/routing_kernel.py": _TRITON,
        "vpmoe/model/tpa_kernel.py": _TRITON,
        "vpmoe/optimizer/triton_kernel.py": _TRITON,
    },
)

CASES = (
    _tiny(
        "tiny_moe",
        "the tiny vpMoE, every feature on, trained on the shipped conversations",
        "--train-iters",
        "20",
        traced_steps=(1, 2),
        throughput=PACED,
    ),
    _tiny(
        "tiny_dense",
        "the tiny vpMoE with dense layers alone",
        "--train-iters",
        "6",
        "--moe-layer-freq",
        "([0]*4)",
        traced_steps=(1,),
    ),
    _tiny(
        "tiny_adam",
        "the tiny vpMoE trained by AdamW alone",
        "--train-iters",
        "4",
        "--optimizer",
        "adam",
    ),
    _tiny(
        "tiny_groups",
        "the tiny vpMoE with the routing of vpmoe-6b: 4 experts of 4 of 8 groups, by their best",
        *_GROUPS,
        traced_steps=(1,),
    ),
    _tiny(
        "tiny_groups_of_two",
        "the same, with groups that are scored by their best two, as DeepSeek-V3's are",
        *_GROUPS,
        "--moe-router-group-score-topk",
        "2",
        traced_steps=(1,),
    ),
    _tiny(
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
    _tiny(
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
    _tiny(
        "one_batch",
        "the tiny vpMoE whose two micro-batches are one: the same training",
        "--train-iters",
        "3",
        "--micro-batch-size",
        "2",
        invariant=Invariant(reference="tiny_moe", curves={**_SAME_TRAINING, **_WHOLE}),
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
    _layout("dp", "data parallel", same={**_SAME_TRAINING, **_WHOLE}),
    _layout(
        "tp",
        "tensor parallel, dense (Megatron has experts with sequence parallelism alone)",
        "--tensor-model-parallel-size",
        "2",
        "--moe-layer-freq",
        "([0]*4)",
        same=_SAME_TRAINING,
        reference="tiny_dense",
    ),
    _layout(
        "tp_sp",
        "tensor and sequence parallel",
        "--tensor-model-parallel-size",
        "2",
        "--sequence-parallel",
        same={**_ONE_REPLICA, **_BIASES},
    ),
    _layout(
        "ep",
        "expert parallel",
        "--expert-model-parallel-size",
        "2",
        same={**_SAME_TRAINING, **_BIASES},
    ),
    _layout("pp", "pipeline parallel", "--pipeline-model-parallel-size", "2", same=_ONE_REPLICA),
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
        description="layers, windows, slopes, frequencies and optimizer routing of the presets",
        lanes=("cpu",),
        target="vpmoe.cases.schedules:run",
        settings={
            "presets": ["configs/vpmoe-dev.toml", "configs/vpmoe-6b.toml"],
            "probed": {"vpmoe-6b": [3, 4]},
            "length": 136,
        },
        preload=WARM,
        needs=Needs(modules=MODULES),
        arithmetic="wide",
    ),
    *gpu.CASES,
)
