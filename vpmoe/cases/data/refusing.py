"""Records of refusals: the error and its message, which names the place, without folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from validation.running.recorder import Recorder


def record_refusal(recorder: Recorder, place: str, call: Callable[[], Any], folder: Path) -> None:
    """Calls something that should refuse, and records what it says; or returns, if it does not.

    What another library says within a message is left out: it changes with its version.

    Args:
        recorder: of this process.
        place: what is refused.
        call: called without arguments.
        folder: temporary folder within the case's, whose paths a message may name.
    """
    try:
        found = call()
        plain = found is None or isinstance(found, bool | int | float | str | list | tuple | dict)
        value: Any = {"accepted": found if plain else type(found).__name__}
    except (ValueError, OSError) as error:
        message, cause = str(error), error.__cause__
        if cause is not None and not type(cause).__module__.startswith("vpmoe.") and str(cause):
            message = message.replace(str(cause), f"<{type(cause).__name__}>")
        for path in (folder, folder.parent):
            message = message.replace(f"{path}/", "")
        value = {"error": type(error).__name__, "message": message}
    recorder.discrete(place, value, tensor="refusal", phase="data")
