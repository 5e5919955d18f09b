"""Known bugs that can be planted in vpMoE's training, and changes that must pass."""

from __future__ import annotations

from validation.cases.vpmoe.faults import (
    attention,
    benign,
    data,
    experts,
    gradients,
    optimizer,
    throughput,
)
from validation.cases.vpmoe.faults.planting import declared

FAULTS = tuple(
    fault
    for module in (data, attention, experts, gradients, optimizer)
    for fault in declared(module.__name__)
)

BENIGN = benign.declared()

THROUGHPUT_FAULTS = throughput.THROUGHPUT_FAULTS
