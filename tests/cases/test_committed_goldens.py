"""The goldens of every lane, loaded without a run: their tolerances follow, and are on file."""

from pathlib import Path

from validation.calibration.derived import problems_of
from validation.goldens import GoldenStore
from validation.goldens.audit_log import AuditLog


def test_tolerances_of_every_lane_follow_from_the_noise_stored_with_them(repository: Path) -> None:
    store = GoldenStore(repository / "goldens")
    log = AuditLog(store.folder)
    assert log.problems == []
    goldens = [
        store.load(lane, case, place)
        for lane in store.lanes()
        for case in store.names(lane)
        for place in store.places(lane, case)
    ]
    assert {golden.lane for golden in goldens} == {"cpu", "h200", "h200-x2"}
    assert any(golden.tolerances.classes for golden in goldens)
    found = {(g.lane, g.case, g.place): problems_of(g, log) for g in goldens}
    assert {key: problems for key, problems in found.items() if problems} == {}
