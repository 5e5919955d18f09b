"""Cases: what is run. See `validation.cases.base`."""

from validation.cases.base import (
    LANES,
    Case,
    CaseError,
    Fault,
    Needs,
    discover_cases,
    discover_faults,
)

__all__ = ["LANES", "Case", "CaseError", "Fault", "Needs", "discover_cases", "discover_faults"]
