"""The goldens of this repository are healthy."""

from pathlib import Path

from validation.cases import discover_cases, discover_faults
from validation.config import declaration_of
from validation.gate.health import examine, known_gaps


def test_this_repository_is_healthy_but_for_what_it_declares() -> None:
    root = Path(__file__).resolve().parents[2]
    declared = declaration_of(root)
    found = examine(root, discover_cases(root), discover_faults(root), declared.lanes)
    left, _ = known_gaps(found, declared.gaps, min(g.expires for g in declared.gaps))
    assert left == []
