"""What must be true of a scratch repository whatever has happened to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

from benchmarks.chaos.attempt import LEFT, LOST, WRONG, Attempt
from benchmarks.chaos.processes import Ended, golden, orphans
from benchmarks.chaos.repository import CASES, LANE, RECORDS, State, trace_digest
from validation.config import declaration_of
from validation.files import DamagedFileError
from validation.gate.check import check_case
from validation.gate.health import Finding, examine
from validation.gate.plan import Check, CheckPlan
from validation.gate.verdict import CaseResult, Verdict
from validation.goldens import GoldenStore
from validation.goldens.audit_log import AuditLog
from validation.goldens.layout import FILES, HEAD
from validation.goldens.sealed import Seal
from validation.progress import Lines
from validation.run_folder import RunFolder
from validation.running.execution import RunOptions
from validation.running.recordings import Recordings
from validation.trace import Trace, load_trace

PASS, FAIL, REFUSED, INVALID, UNFIT, HARDWARE = 0, 1, 2, 3, 4, 5

_WHOLE = 0.25

INTERRUPTED = "interrupted"
REPAIRED = frozenset({"leftover", "canaries", "uncalibrated", INTERRUPTED})
"""Findings of `golden health` that a stopped command may leave: running it again repairs them."""


def contents(root: Path, *folders: str) -> dict[str, str]:
    """Every file below folders of a repository: path -> digest."""
    return {
        str(path.relative_to(root)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


class Before:
    """What was there before an attempt and must stay readable."""

    def __init__(self, root: Path) -> None:
        self._files = {
            name: found
            for name, found in contents(root, "goldens/audit", "runs").items()
            if not name.endswith((".lock", "publish.json"))
        }

    def new_audits(self, root: Path) -> list[Path]:
        """Audit files that were not there."""
        found = sorted((root / "goldens" / "audit").glob("*.json"))
        return [path for path in found if str(path.relative_to(root)) not in self._files]

    def changed(self, root: Path) -> list[str]:
        """Audit files and files of earlier runs that are gone or other than before."""
        now = contents(root, "goldens/audit", "runs")
        return [name for name, found in self._files.items() if now.get(name) != found]


def judge_store(attempt: Attempt, state: State, root: Path, before: Before) -> None:
    """Nothing is lost: every golden is whole and one that was accepted, and so is what else was."""
    store = GoldenStore(root / "goldens")
    for case in CASES:
        try:
            found = trace_digest(store.load(LANE, case).trace)
        except DamagedFileError as error:
            if state is attempt.states.merging and "two branches accepted" in str(error):
                continue  # as it was before
            attempt.blame(LOST, f"golden {case}: {error}")
            continue
        if found not in state.accepted[case]:
            attempt.blame(LOST, f"golden {case}: holds another trace than any that was accepted")
    for path in sorted((root / "goldens" / "audit").glob("*.json")):
        try:
            if not isinstance(json.loads(path.read_bytes()), dict):
                raise ValueError("no object")
        except ValueError as error:
            attempt.blame(LOST, f"{path.name}: {error}")
    for name in before.changed(root):
        attempt.blame(LOST, f"{name}: gone, or other than before")
    for head in (root / "runs").glob("*/traces/*/trace.json"):
        try:
            load_trace(head.parent)
        except DamagedFileError as error:
            attempt.blame(LOST, str(error))


def judge_audits(attempt: Attempt, root: Path, before: Before) -> None:
    """No audit file tells of what never happened, unless health says that it may."""
    if INTERRUPTED in {finding.kind for finding in health(attempt, root)}:
        return
    store = GoldenStore(root / "goldens")
    for path in before.new_audits(root):
        audit = json.loads(path.read_bytes())
        for kind, recorded in (("goldens", "accepted"), ("calibrated", "calibration")):
            for entry in audit.get(kind, ()):
                try:
                    head = store.head(LANE, entry["case"])
                except DamagedFileError:
                    head = {}
                if head.get(recorded, {}).get("time") != audit["time"]:
                    text = f"{path.name} tells of what never happened to {entry['case']}"
                    attempt.blame(LOST, text)


def health(attempt: Attempt, root: Path) -> list[Finding]:
    """What `golden health` finds."""
    declared = declaration_of(root)
    return examine(root, attempt.states.cases, attempt.states.faults, declared.lanes)


def judge_health(attempt: Attempt, root: Path, allowed: Collection[str]) -> None:
    """Health is clean, or names repairs of kinds that are allowed here."""
    for finding in health(attempt, root):
        if finding.kind not in allowed:
            attempt.blame(LOST, f"health: {finding.kind}: {finding.subject}: {finding.text}")


def stray_files(root: Path) -> list[str]:
    """Files in `goldens/` that are no golden's, audit or quarantine."""
    folder = root / "goldens"
    return [
        str(path.relative_to(root))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not (
            (path.name in (HEAD, *FILES) and len(path.relative_to(folder).parts) == 3)
            or (
                path.parent.name == "audit"
                and path.suffix == ".json"
                and not path.name.startswith(".")
            )
        )
    ]


def judge_order(attempt: Attempt, root: Path) -> None:
    """No stray file is left in `goldens/`, and health is clean."""
    for name in stray_files(root):
        attempt.blame(LEFT, f"{name}: a stray file")
    judge_health(attempt, root, ())


def judge_processes(attempt: Attempt) -> None:
    """No process is left."""
    for command in orphans():
        attempt.blame(LEFT, f"an orphan: {command}")


def judge_check(attempt: Attempt, ended: Ended, *codes: int) -> None:
    """A check has said one of these, and a PASS of every record."""
    if not attempt.expect(ended, *codes):
        return
    if ended.code == PASS and f"{RECORDS} records compared" not in ended.out:
        attempt.blame(WRONG, f"{ended.tail()}: a PASS of something else than {RECORDS} records")


def passes(attempt: Attempt, state: State, root: Path) -> None:
    """A check passes: of some attempts a whole one, of the others what it says of each case."""
    if attempt.random.random() < _WHOLE:
        judge_check(attempt, golden(root, "check"), PASS)
        return
    for case in CASES:
        result = case_result(attempt, state, root, case)
        if result.verdict is not Verdict.PASS:
            attempt.blame(WRONG, f"{case}: {result.verdict}: {result.message}")


def case_result(attempt: Attempt, state: State, root: Path, case: str) -> CaseResult:
    """What a check says of a case, whose run is the one that its code makes."""
    folder, silent = RunFolder(attempt.folder / "run"), Lines(lambda line: None)

    def record(*_: object) -> Trace:
        return state.expected[case]

    options, goldens = RunOptions(lane=LANE), root / "goldens"
    check = Check(
        plan=CheckPlan(root=root, lane=LANE, cases=list(attempt.states.cases.values())),
        store=GoldenStore(goldens),
        base=None,
        audit=AuditLog(goldens),
        base_audit=None,
        seal=Seal([goldens]),
        folder=folder,
        options=options,
        recordings=Recordings(options, folder.log, record, silent),
        gpus=0,
    )
    return check_case(attempt.states.cases[case], check)
