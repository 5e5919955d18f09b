"""The target of the case `refusals`: what is said of flags that cannot be meant together.

Nothing is trained. Flags go through the parser and the checks of Megatron and vpMoE in the order of
`vpmoe pretrain`, and the message is recorded, or the warnings about what cannot have an effect.
Configurations that no flag gives are refused where modules are built.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

from validation.running.recorder import Recorder
from vpmoe.cases.presets import preset_flags

# As many ranks as the largest layout asks for; none of them is started.
_ENVIRONMENT = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "8",
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
}


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Records the answer to each list of flags.

    Args:
        recorder: of this process.
        settings: `base` (a preset's file), `flags` (behind the preset's), `asked` (each with
            `flags`, in words, and `without`, fields of the preset that are left out).
    """
    from vpmoe.megatron.repairs import skip_helper_build
    from vpmoe.runtime import detect_lane

    lane = detect_lane()
    with lane.activate(), skip_helper_build(), patch.dict(os.environ, _ENVIRONMENT):
        for asked in settings["asked"]:
            words = [*settings.get("flags", ()), *asked["flags"].split()]
            without = asked.get("without", ())
            flags = preset_flags(settings["base"], words, without)
            name = asked["flags"] + "".join(f" without {field}" for field in without)
            recorder.discrete(
                f"flags/{name.strip()}", answer([*lane.default_flags, *flags]), tensor="answer"
            )


def answer(flags: Sequence[str]) -> dict[str, Any]:
    """What is said of flags: `refused` with the message, or `warnings`."""
    from vpmoe.model.limits import limits_without_effect
    from vpmoe.model.meta import checked_arguments

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            args = checked_arguments(list(flags))
    except (ValueError, AssertionError) as error:
        return {"refused": type(error).__name__, "message": str(error)}
    except SystemExit:  # of the parser, which prints its usage first
        return {"refused": "SystemExit", "message": said.getvalue().splitlines()[-1]}
    return {"warnings": limits_without_effect(args)}
