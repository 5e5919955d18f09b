"""Instruments: files that every Python process of a run executes before anything else.

`instrumented()` gives the variables of such a run. `instrumented/sitecustomize.py`, which they put
onto the module search path, executes the file in the warm parent, in its forks through it, and in
every Python program that a case starts. An instrument imports nothing of the harness, since the
programs of a case need not be able to.
"""

from __future__ import annotations

import os
from pathlib import Path

from validation.config.python_path import entry

FILE = "GOLDEN_INSTRUMENT"

_SITE = Path(__file__).parent / "instrumented"


def instrumented(file: Path, **variables: str) -> dict[str, str]:
    """Variables, for `RunOptions.environment`, with which a run's processes execute a file.

    Runs with other variables have another warm parent, so that no module which one has imported
    under an instrument reaches a run without it.

    Args:
        file: the instrument, a Python file.
        **variables: what it reads.

    Returns:
        Value by variable.
    """
    path = [entry(str(_SITE)), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**variables, FILE: str(file), "PYTHONPATH": os.pathsep.join(path)}
