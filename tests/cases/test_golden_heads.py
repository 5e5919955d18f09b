"""The goldens of every lane are of the cases that are declared."""

from __future__ import annotations

from pathlib import Path

import pytest

from validation.calibration.derived import problems_of
from validation.cases import discover_cases
from validation.goldens.audit_log import AuditLog
from validation.goldens.layout import HEAD
from validation.goldens.store import GoldenStore

GOLDENS = Path(__file__).resolve().parents[2] / "goldens"
HEADS = sorted(path.parent.relative_to(GOLDENS).parts for path in GOLDENS.glob(f"**/{HEAD}"))


def test_there_are_goldens_of_every_lane() -> None:
    assert {lane for lane, *_ in HEADS} == {"cpu", "h200", "h200-x2"}


@pytest.mark.parametrize("parts", HEADS, ids="/".join)
def test_a_golden_is_of_its_declared_case(parts: tuple[str, ...]) -> None:
    lane, name, *place = parts
    head = GoldenStore(GOLDENS).head(lane, name, *place)
    assert head["case_digest"] == discover_cases(GOLDENS.parent)[name].digest


@pytest.mark.parametrize("parts", HEADS, ids="/".join)
def test_its_tolerances_follow_from_the_noise_stored_with_them(parts: tuple[str, ...]) -> None:
    assert problems_of(GoldenStore(GOLDENS).load(*parts), AuditLog(GOLDENS)) == []


def test_no_audit_file_was_edited() -> None:
    assert AuditLog(GOLDENS).problems == []
