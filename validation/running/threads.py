"""How many threads a run that need not be alone on the machine gets."""

from __future__ import annotations

import os
from collections.abc import Mapping

from validation.cases import Case

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def threads_of(case: Case, shared: Mapping[str, str]) -> dict[str, str]:
    """Variables for the run of a case.

    In wide arithmetic records do not depend on the number of threads, and one thread for each rank
    wastes no time on waiting for the others. What the user has said stays.

    Args:
        case: what is run.
        shared: what other cases get.

    Returns:
        Value by variable, for `RunOptions.environment`.
    """
    if case.arithmetic != "wide":
        return dict(shared)
    return {**shared, **{name: "1" for name in _VARIABLES if name not in os.environ}}
