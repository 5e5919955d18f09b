"""vpMoE's cases. Declarations only: nothing of vpMoE or Megatron is imported here."""

from __future__ import annotations

from validation.cases.base import Case, Needs

_TRAINING = "validation.cases.vpmoe.training:run"
_WARM = ("torch", "validation.cases.vpmoe.training:warm")
_MODULES = ("torch", "megatron", "vpmoe")

_TINY = {
    "preset": "configs/vpmoe-tiny.toml",
    "conversations": "data/sample/conversations.jsonl",
}

CASES = (
    Case(
        name="tiny_moe",
        description="the tiny vpMoE, every feature on, trained on the shipped conversations",
        lanes=("cpu",),
        target=_TRAINING,
        settings={**_TINY, "flags": ["--train-iters", "20"]},
        traced_steps=(1, 2),
        preload=_WARM,
        needs=Needs(modules=_MODULES),
    ),
    Case(
        name="tiny_synth",
        description="the tiny vpMoE on real SYNTH rows, with span-weighted loss",
        lanes=("cpu",),
        target=_TRAINING,
        settings={
            **_TINY,
            "conversations": "../shared/data/synth_rows_valid.jsonl",
            "flags": ["--train-iters", "4"],
            "profile": "synth_kd_v1",
        },
        traced_steps=(1,),
        preload=_WARM,
        needs=Needs(modules=_MODULES, paths=("../shared/data/synth_rows_valid.jsonl",)),
    ),
)
