"""Cases: what is run. See `validation.cases.base`."""

from validation.cases.base import Benign, Case, Fault, Invariant, Needs, leads
from validation.cases.discovery import (
    discover_benign,
    discover_cases,
    discover_faults,
    discover_gated,
    discover_throughput_faults,
    lanes_with_cases,
)
from validation.cases.gated import Field, Gated
from validation.config import CaseError

__all__ = [
    "Benign",
    "Case",
    "CaseError",
    "Fault",
    "Field",
    "Gated",
    "Invariant",
    "Needs",
    "discover_benign",
    "discover_cases",
    "discover_faults",
    "discover_gated",
    "discover_throughput_faults",
    "lanes_with_cases",
    "leads",
]
