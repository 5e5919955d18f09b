"""Cases of vpMoE's commands: what they print, refuse and write. Nothing trains."""

from __future__ import annotations

from validation.cases.base import Case, Needs
from vpmoe.cases.targets import MODULES, WARM


def _commands(topic: str, description: str) -> Case:
    return Case(
        name=f"commands_{topic}",
        description=description,
        lanes=("cpu",),
        target=f"vpmoe.cases.commands.{topic}:run",
        preload=WARM,
        needs=Needs(modules=MODULES),
        arithmetic="wide",
    )


CASES = (
    _commands("data", "what `vpmoe data` and `vpmoe tokenizer` print, refuse and write"),
    _commands(
        "training",
        "presets and flags of `vpmoe pretrain`, up to the training itself, `vpmoe params`, the "
        "contracts with Megatron, and every refusal of theirs",
    ),
    _commands("export", "what `vpmoe export`, `import` and `generate` print, refuse and write"),
)
