"""Lists what of a change would loosen the gate, for the base that judges it under `--judge`.

The base's tolerances decide, and a quarantine counts only where both the base and the change have
it. Two things of a change would loosen the gate after its merge: tolerances of its goldens that are
wider than the base's, and quarantine that the base lacks or that ends earlier there. They are
listed, with the verdict that the check would have if an owner accepted them: the base's comparator,
cases and canary with the change's own tolerances and quarantine. Only tolerances that a calibration
measured can be accepted. A golden or a case that is gone stays INVALID.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from validation.files import DamagedFileError
from validation.gate.quarantine import QuarantineEntry, apply_quarantine, load_quarantine
from validation.gate.verdict import CaseResult, Loosening, Verdict, worst
from validation.goldens.audit_log import AUDIT, AuditLog
from validation.goldens.calibrated import RERUNS, calibration_on_file, widened
from validation.goldens.layout import HEAD
from validation.goldens.store import GoldenStore


def find_loosenings(goldens: Path, judge: Path, lane: str) -> list[Loosening]:
    """Finds everything in a tree's goldens that would loosen the gate of a lane.

    Args:
        goldens: `goldens/` of the change.
        judge: `goldens/` of the base.
        lane: whose goldens are compared; quarantine is of all lanes.

    Returns:
        The loosenings; empty where there is none.

    Raises:
        DamagedFileError: the base's quarantine is damaged.
    """
    return [*_wider(goldens, judge, lane), *_quarantined(goldens, judge)]


def _wider(goldens: Path, judge: Path, lane: str) -> Iterator[Loosening]:
    """Goldens with wider tolerances than the base's nearest; a damaged one is INVALID when run."""
    store, base, log = GoldenStore(goldens), GoldenStore(judge), AuditLog(goldens)
    known = {path.name for path in (judge / AUDIT).glob("*.json")}
    for case in store.names(lane):
        for place in store.places(lane, case):
            ours, theirs = (s.path(lane, case, place) / HEAD for s in (store, base))
            if theirs.exists() and theirs.read_bytes() == ours.read_bytes():
                continue
            try:
                golden = store.load(lane, case, place)
                former = base.nearest(lane, case, golden.environment)
            except DamagedFileError:  # a missing one, too: a case that only the change has
                continue
            wider = widened(former.tolerances, golden.tolerances)
            if wider is None:
                continue
            audit = calibration_on_file(log, golden)
            again = f"golden calibrate {case} --lane {lane}"
            measured = False
            if audit is None:
                source = (
                    "no calibration under goldens/audit measured them, so that nobody can accept "
                    f"them: {again}"
                )
            elif RERUNS not in audit.fields and audit.path.name not in known:
                source = (
                    f"goldens/audit/{audit.path.name} is new and names no rerun, so that nobody "
                    f"can accept them: {again}"
                )
            else:
                measured = True
                runs = golden.calibration.get("runs")
                reason = audit.reason or "no reason is given"
                source = f"from {runs} reruns by {audit.author} at {audit.time}: {reason}"
            subject = f"{place}: " if place else ""
            text = f"{subject}{wider.describe()}; {source}"
            yield Loosening("tolerance", case, text, acceptable=measured)


def _quarantined(goldens: Path, judge: Path) -> Iterator[Loosening]:
    """Entries that the base lacks, or that end earlier there."""
    former = {entry.case: entry for entry in load_quarantine(judge)}
    try:
        entries = load_quarantine(goldens)
    except DamagedFileError as error:
        yield Loosening("quarantine", "", str(error), acceptable=False)
        return
    for entry in entries:
        before = former.get(entry.case)
        if before is None:
            yield Loosening("quarantine", entry.case, entry.describe())
        elif entry.expires > before.expires:
            text = f"{entry.describe()}; the base's ends on {before.expires}"
            yield Loosening("quarantine", entry.case, text)


def quarantine_in_force(goldens: Path, judge: Path | None) -> list[QuarantineEntry]:
    """Reads the quarantine in force: with a judge, the stricter of the judge's and the tree's.

    An entry that the tree removes or shortens is removed or shortened: tightening needs nobody.

    Args:
        goldens: `goldens/` of the tree.
        judge: `goldens/` of the base; None without a judge.

    Returns:
        The entries in force.

    Raises:
        DamagedFileError: the file that decides is damaged.
    """
    if judge is None:
        return load_quarantine(goldens)
    former = load_quarantine(judge)
    try:
        ours = {entry.case: entry for entry in load_quarantine(goldens)}
    except DamagedFileError:  # it is listed as a loosening that nobody can accept
        return former
    return [
        min(entry, ours[entry.case], key=lambda e: e.expires)
        for entry in former
        if entry.case in ours
    ]


def verdict_if_accepted(
    found: Sequence[Loosening],
    results: Sequence[CaseResult],
    goldens: Path,
    proves: Callable[[], bool],
) -> Verdict:
    """Computes the verdict that the check would have if an owner accepted the loosenings.

    Args:
        found: loosenings.
        results: of the check, before any quarantine.
        goldens: `goldens/` of the change, whose quarantine would be in force.
        proves: whether the canary is caught at the tolerances that would be in force; asked only
            where everything else passes.

    Returns:
        The verdict.
    """
    if not all(loosening.acceptable for loosening in found):
        return Verdict.INVALID
    accepted = [replace(result, verdict=result.if_accepted or result.verdict) for result in results]
    _, counted = apply_quarantine(accepted, load_quarantine(goldens))
    verdict = worst(counted)
    return Verdict.INVALID if verdict is Verdict.PASS and not proves() else verdict
