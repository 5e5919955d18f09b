"""Known bugs that can be planted in vpMoE's training, and changes that must pass."""

from __future__ import annotations

from validation.cases.vpmoe.faults import (
    attention,
    benign,
    data,
    experts,
    gradients,
    numerics,
    optimizer,
    parallel,
    positions,
    resume,
)
from validation.cases.vpmoe.faults.planting import declared

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
)

FAULTS = tuple(fault for module in _MODULES for fault in declared(module.__name__))

BENIGN = benign.declared()
