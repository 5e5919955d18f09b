"""Every declared bug and harmless change finds what it patches, and takes it back."""

from __future__ import annotations

import pytest
import torch

from validation.cases import discover_benign, discover_cases, discover_faults
from validation.worker import resolve

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="plants in the CPU lane")

FAULTS, BENIGN = discover_faults(), discover_benign()


@pytest.mark.parametrize("name", [*FAULTS, *BENIGN])
def test_it_can_be_planted_and_taken_back(name: str) -> None:
    declared = (FAULTS | BENIGN)[name]
    assert declared.case in discover_cases()
    for _ in range(2):
        with resolve(declared.plant)():
            pass


def test_there_are_canaries_and_categories() -> None:
    canaries = [fault for fault in FAULTS.values() if fault.canary and fault.canary_steps]
    assert len(canaries) >= 20
    assert len({fault.category for fault in FAULTS.values()}) >= 12
    assert len(FAULTS) >= 50
