"""Cases: what is run. See `validation.cases.base`."""

from validation.cases.base import (
    LANES,
    Benign,
    Case,
    CaseError,
    Fault,
    Law,
    Needs,
    discover_benign,
    discover_cases,
    discover_faults,
    discover_throughput_faults,
)

__all__ = [
    "LANES",
    "Benign",
    "Case",
    "CaseError",
    "Fault",
    "Law",
    "Needs",
    "discover_benign",
    "discover_cases",
    "discover_faults",
    "discover_throughput_faults",
]
