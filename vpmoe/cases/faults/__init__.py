"""Known bugs that can be planted in vpMoE's training, and changes that must pass."""

from __future__ import annotations

from vpmoe.cases.faults import (
    attention,
    benign,
    commands,
    data,
    experts,
    export,
    gradients,
    log,
    numerics,
    optimizer,
    parallel,
    positions,
    resume,
    rewritten,
    throughput,
)
from vpmoe.cases.faults.planting import declared

_MODULES = (
    data,
    attention,
    positions,
    experts,
    gradients,
    optimizer,
    numerics,
    parallel,
    resume,
    log,
    export,
    commands,
)

FAULTS = tuple(fault for module in _MODULES for fault in declared(module.__name__))

BENIGN = tuple(
    change for module in (benign, rewritten) for change in benign.declared(module.__name__)
)

THROUGHPUT_FAULTS = throughput.THROUGHPUT_FAULTS
