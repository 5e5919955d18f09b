"""The commands of a training that do not train: presets, flags, contracts, and every refusal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from validation.running.recorder import Recorder
from vpmoe.cases.commands.contracts import record_contracts
from vpmoe.cases.commands.presets import record_presets
from vpmoe.cases.commands.pretraining import record_pretraining
from vpmoe.cases.commands.session import session


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Runs every command with good input and with each kind of bad input.

    Args:
        recorder: of this process.
        settings: none.
    """
    del settings
    with session(recorder, "presets") as commands:
        record_presets(commands)
    with session(recorder, "pretrain") as commands:
        record_pretraining(commands)
    with session(recorder, "megatron") as commands:
        record_contracts(commands)
