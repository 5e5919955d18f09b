"""`golden health`: what is wrong in the store and no check reports."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timezone
from pathlib import Path

from validation.calibration.derived import problems_of, what_to_do, without_reruns
from validation.cases import Case, Fault
from validation.cases.difference import what_differs
from validation.config import Lane
from validation.config.gaps import Gap
from validation.coverage.fall import fallen
from validation.files import DamagedFileError, unfinished_writes
from validation.gate.quarantine import load_quarantine
from validation.goldens.audit_log import ACCEPTED, AUDIT, AuditLog
from validation.goldens.canaries import CERTAIN, listed, stale
from validation.goldens.environments import in_words
from validation.goldens.golden import Golden
from validation.goldens.layout import FILES, HEAD, unsettled
from validation.goldens.proven import fit
from validation.goldens.store import GoldenStore, MissingGoldenError
from validation.goldens.under_way import MARKER, stopped
from validation.trace import curve_class, event_class

MAX_CASE_BYTES = 10**6
"""Of a golden, on average over a lane: a repository keeps every one that was ever accepted."""


_REPAIR = "golden health --repair"
_STRAY = "belongs to no golden (an interrupted update or a merge): delete it"


@dataclass(frozen=True)
class Finding:
    """Something to repair.

    Attributes:
        kind: `orphaned`, `stale`, `damaged`, `unreachable`, `uncalibrated`, `unchecked`,
            `underived`, `audit`, `canaries`, `never-run`, `coverage`, `interrupted`, `leftover`,
            `quarantine`, `size` or `gap`.
        subject: lane and case, also the class of records that it is about, or a file.
        text: what is wrong, and what to do.
    """

    kind: str
    subject: str
    text: str


def examine(
    root: Path, cases: Mapping[str, Case], faults: Mapping[str, Fault], lanes: Mapping[str, Lane]
) -> list[Finding]:
    """Finds everything that is wrong with the goldens of a repository.

    Args:
        root: the repository.
        cases: every declared case.
        faults: every declared fault.
        lanes: every declared lane, by name.

    Returns:
        The findings; empty where all is well.
    """
    store = GoldenStore(root / "goldens")
    log = AuditLog(store.folder)
    found = [*_stopped(store), *_unknown_folders(store, lanes), *_quarantine(store.folder, cases)]
    found += [Finding("audit", str(path.relative_to(root)), text) for path, text in log.problems]
    for lane, declared in lanes.items():
        for name in store.names(lane):
            found += _examine_case(store, log, declared, name, cases)
        for case in cases.values():
            if lane in case.lanes and not store.places(lane, case.name):
                found.append(
                    Finding(
                        "never-run",
                        f"{lane}/{case.name}",
                        "has no golden, so that nothing checks it: "
                        f"golden update {case.name} --lane {lane} --reason TEXT",
                    )
                )
        found += _examine_canaries(store, lane, cases, faults)
        digests = {name: case.digest for name, case in cases.items() if lane in case.lanes}
        found += [Finding("coverage", lane, text) for text in fallen(root, lane, digests)]
    for fault in faults.values():
        missing = {fault.shown_by(lane) for lane in fault.lanes} - cases.keys()
        if missing:
            text = f"is shown by case {min(missing)}, which does not exist"
            found.append(Finding("unreachable", f"fault {fault.id}", text))
    for lane in (name for name, declared in lanes.items() if not declared.on_gpus):
        size = sum(p.stat().st_size for p in (store.folder / lane).rglob("*") if p.is_file())
        goldens = max(1, len(store.names(lane)))
        if size > MAX_CASE_BYTES * goldens:
            most = MAX_CASE_BYTES * goldens / 1e6
            text = f"{size / 1e6:.1f} MB of goldens, more than {most:g} for {goldens}"
            found.append(Finding("size", lane, text))
    return found


def notes(root: Path, lanes: Mapping[str, Lane]) -> list[str]:
    """What is no finding, and worth knowing: goldens whose calibration has no reruns on file."""
    store, told = GoldenStore(root / "goldens"), []
    for lane in lanes:
        older = []
        for name, place in ((n, p) for n in store.names(lane) for p in store.places(lane, n)):
            try:
                golden = store.load(lane, name, place)
            except DamagedFileError:
                continue  # a finding
            if without_reruns(golden):
                older.append("/".join(filter(None, (name, place))))
        if older:
            told.append(
                f"{lane}: {len(older)} golden(s) were calibrated before reruns were stored, so "
                "that their noise is held to no rerun; golden calibrate stores them: "
                + ", ".join(older)
            )
    return told


def known_gaps(
    findings: Sequence[Finding], gaps: Sequence[Gap], today: date
) -> tuple[list[Finding], list[tuple[Finding, Gap]]]:
    """Parts findings from those that the repository has declared.

    Args:
        findings: what `examine` found.
        gaps: what is declared.
        today: decides which gaps have expired.

    Returns:
        What is left to repair, gaps that cover nothing included, and what is known.
    """
    declared, left = {}, []
    for gap in gaps:
        wrong = gap.wrong_on(today)
        for subject in gap.subjects:
            if wrong is None:
                declared[gap.kind, subject] = gap
            else:
                left.append(Finding("gap", f"{gap.kind} {subject}", wrong))
    known = []
    for finding in findings:
        found = declared.get((finding.kind, finding.subject))
        if found is None:
            left.append(finding)
        else:
            known.append((finding, found))
    met = {(finding.kind, finding.subject) for finding, _ in known}
    left += [
        Finding("gap", f"{kind} {subject}", "is declared and not found: delete it from gaps")
        for kind, subject in declared
        if (kind, subject) not in met
    ]
    return left, known


def _examine_case(
    store: GoldenStore, log: AuditLog, declared: Lane, name: str, cases: Mapping[str, Case]
) -> list[Finding]:
    lane = declared.name
    subject = f"{lane}/{name}"
    case = cases.get(name)
    if case is None:
        return [Finding("orphaned", subject, "no case of that name is declared: delete the folder")]
    if lane not in case.lanes:
        text = f"its case runs on {', '.join(case.lanes)} only, so that no check reads it"
        return [Finding("unreachable", subject, text)]
    places = store.places(lane, name)
    found = [f for place in places for f in _examine_golden(store, log, lane, case, place)]
    if not declared.on_gpus and len(places) > 1:
        text = f"the {lane} lane has one golden a case: delete the folders inside of it"
        found.append(Finding("unreachable", subject, text))
    for folder in sorted(p for p in store.path(lane, name).iterdir() if p.is_dir()):
        if folder.name not in places:
            found.append(_leftover(store, folder))
    return found


def _examine_golden(
    store: GoldenStore, log: AuditLog, lane: str, case: Case, place: str
) -> list[Finding]:
    name = case.name
    subject = "/".join(filter(None, (lane, name, place)))
    try:
        golden = store.load(lane, name, place)
    except MissingGoldenError:
        return []
    except DamagedFileError as error:
        return [Finding("damaged", subject, str(error))]
    found = []
    if golden.case_digest != case.digest:
        why = what_differs(case, golden.trace.provenance)
        text = f"recorded of another declaration of the case{why}: "
        text += f"golden update {name} --reason TEXT"
        found.append(Finding("stale", subject, text))
    if golden.trace.records == 0:
        found.append(Finding("unchecked", subject, "holds no record"))
    found += _examine_tolerances(golden, subject)
    found += [
        Finding("underived", subject, f"{problem.text}: {what_to_do(golden)}")
        for problem in problems_of(golden, log)
    ]
    if not _audited(log, lane, name, place and in_words(golden.environment)):
        text = "no file under goldens/audit tells of its acceptance"
        found.append(Finding("unreachable", subject, text))
    folder = store.path(lane, name, place)
    waiting = unsettled(folder, store.head(lane, name, place)["files"])
    if waiting:
        text = (
            f"{len(waiting)} file(s) have their digest in the name ({waiting[0]}): an acceptance "
            f"that was stopped, or one from before names were fixed: {_REPAIR}, or golden setup"
        )
        found.append(Finding("leftover", subject, text))
    known = {HEAD, *FILES, *waiting, *(p.name for p in unfinished_writes(folder))}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in known:
            found.append(_leftover(store, path))
    return found


def _examine_canaries(
    store: GoldenStore, lane: str, cases: Mapping[str, Case], faults: Mapping[str, Fault]
) -> list[Finding]:
    """Lists that hold no longer, and a lane whose checks can plant nothing that is proven."""
    found, proven = [], False
    names = [name for name in store.names(lane) if name in cases and lane in cases[name].lanes]
    for name, place in ((n, p) for n in names for p in store.places(lane, n)):
        subject = "/".join(filter(None, (lane, name, place)))
        path = store.path(lane, name, place) / HEAD
        try:
            head = store.head(lane, name, place)
            known = listed(head, path).proofs
        except DamagedFileError:
            continue  # a finding of its own
        again = f"golden calibrate {name}, or golden faults --lane {lane}"
        if stale(head, path):
            text = f"its {len(known)} canaries were proven against another trace or tolerances"
            found.append(Finding("canaries", subject, f"{text}, and count for nothing: {again}"))
            continue
        gone = sorted(set(known) - faults.keys())
        if gone:
            text = f"lists {len(gone)} canaries that are no longer declared ({gone[0]}): {again}"
            found.append(Finding("canaries", subject, text))
        proven |= any(
            proof.margin >= CERTAIN and fault in faults and fit(faults[fault], lane)
            for fault, proof in known.items()
        )
    if not proven and any(fit(f, lane) and f.shown_by(lane) in names for f in faults.values()):
        text = "no fault is proven to be caught, so that checks plant none: "
        found.append(Finding("canaries", lane, f"{text}golden faults --lane {lane}"))
    return found


def _stopped(store: GoldenStore) -> list[Finding]:
    """What an acceptance that was killed left besides its goldens."""
    name = f"{store.folder.name}/{MARKER}"
    try:
        text = stopped(store)
    except DamagedFileError as error:
        return [Finding("interrupted", name, str(error))]
    found = [] if text is None else [Finding("interrupted", name, f"{text}: {_REPAIR}")]
    text = f"was never finished (an interrupted update): {_REPAIR}"
    return found + [_leftover(store, path, text) for path in unfinished_writes(store.folder)]


def _leftover(store: GoldenStore, path: Path, text: str = _STRAY) -> Finding:
    return Finding("leftover", str(path.relative_to(store.folder.parent)), text)


def _examine_tolerances(golden: Golden, subject: str) -> list[Finding]:
    """Classes that were never calibrated, and tolerances so wide that nothing could exceed them."""
    known = golden.tolerances.classes
    recorded = {curve_class(key) for key in golden.trace.curves}
    recorded |= {event_class(event.key) for event in golden.trace.events if event.floating}
    if not known and not recorded:
        return []  # facts alone, which have no tolerance
    if not known:
        text = (
            "was never calibrated, so that only exact runs pass: "
            f"golden calibrate {golden.case} --lane {golden.lane}"
        )
        return [Finding("uncalibrated", subject, text)]
    missing = sorted(recorded - set(known))
    found = []
    if missing:
        text = f"{len(missing)} class(es) without a tolerance ({missing[0]}): calibrate again"
        found.append(Finding("uncalibrated", subject, text))
    for name in sorted(recorded & set(known)):
        steps = known[name]
        if all(tolerance >= 1.0 for tolerance in steps.values()):
            text = "is recorded, but any value of it would pass: its noise is too large"
            found.append(Finding("unchecked", f"{subject} {name}", text))
    return found


def _audited(log: AuditLog, lane: str, name: str, environment: str) -> bool:
    """Whether an acceptance is on file; of the first environment's golden, in any environment."""
    return any(
        entry.kind == ACCEPTED and environment in ("", entry.fields.get("environment"))
        for entry in log.of(lane, name)
    )


def _unknown_folders(store: GoldenStore, lanes: Collection[str]) -> list[Finding]:
    known = {*lanes, AUDIT}
    folders = sorted(p for p in store.folder.glob("*") if p.is_dir() and p.name not in known)
    text = f"is no lane; lanes are {', '.join(lanes)}"
    return [Finding("unreachable", f"goldens/{folder.name}", text) for folder in folders]


def _quarantine(goldens: Path, cases: Mapping[str, Case]) -> Sequence[Finding]:
    try:
        entries = load_quarantine(goldens)
    except DamagedFileError as error:
        return [Finding("quarantine", "goldens/quarantine.json", str(error))]
    today = datetime.now(timezone.utc).date()
    found = [
        Finding("quarantine", entry.case, f"expired on {entry.expires} ({entry.owner})")
        for entry in entries
        if today > entry.expires
    ]
    return found + [
        Finding("quarantine", entry.case, "no case of that name is declared")
        for entry in entries
        if entry.case not in cases
    ]
