"""Records of refusals: the error and its message, which names the place, without folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from validation.running.recorder import Recorder


def record_refusal(recorder: Recorder, place: str, call: Callable[[], Any], folder: Path) -> None:
    """Calls something that should refuse, and records what it says; or returns, if it does not.

    Args:
        recorder: of this process.
        place: what is refused.
        call: called without arguments.
        folder: temporary folder, whose path a message may name.
    """
    try:
        found = call()
        plain = found is None or isinstance(found, bool | int | float | str | list | tuple | dict)
        value: Any = {"accepted": found if plain else type(found).__name__}
    except (ValueError, OSError) as error:
        value = {"error": type(error).__name__, "message": str(error).replace(f"{folder}/", "")}
    recorder.discrete(place, value, tensor="refusal", phase="data")
