"""Bugs in what a run prints."""

from __future__ import annotations

import contextlib

from vpmoe.cases.faults.planting import Planted, fault, patched


@fault(
    "second-line-mean-of-two",
    "log",
    "printed",
    "Megatron's second line after a start (https://github.com/NVIDIA/Megatron-LM/issues/6237)",
    case="printed",
    steps=8,  # the whole case: scalars against samples count 8 of them
    canary=False,
)
def second_line_mean_of_two() -> Planted:
    """The first iteration's loss stays in the sums of the next interval."""
    return patched("vpmoe.pretrain", "interval_means", lambda original: contextlib.nullcontext)
