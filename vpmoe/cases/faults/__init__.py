"""Known bugs that can be planted in vpMoE's training, and changes that must pass."""

from __future__ import annotations

from vpmoe.cases.faults import (
    alternatives,
    attention,
    benign,
    commands,
    data,
    data_rows,
    experts,
    export,
    gradients,
    layouts,
    log,
    numerics,
    optimizer,
    parallel,
    positions,
    resume,
    rewritten,
    steps,
    throughput,
    varied,
)
from vpmoe.cases.faults.planting import declared

_MODULES = (
    data,
    data_rows,
    attention,
    positions,
    experts,
    gradients,
    optimizer,
    numerics,
    parallel,
    layouts,
    resume,
    log,
    export,
    commands,
    steps,
    varied,
    alternatives,
)

FAULTS = tuple(fault for module in _MODULES for fault in declared(module.__name__))

BENIGN = tuple(
    change for module in (benign, rewritten) for change in benign.declared(module.__name__)
)

THROUGHPUT_FAULTS = throughput.THROUGHPUT_FAULTS
