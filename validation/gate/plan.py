"""What a check does, and what its steps share."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from validation.cases import Case, Fault, discover_cases
from validation.config import Declaration, Lane
from validation.gate.base import OVERLAY, judged_declaration, sources_of, with_base_tolerances
from validation.goldens import Golden, GoldenStore
from validation.goldens.audit_log import AuditLog
from validation.goldens.golden import environment_of
from validation.goldens.sealed import Seal
from validation.progress import Progress
from validation.run_folder import RunFolder
from validation.running.environment import describe, gpu_count
from validation.running.execution import RunOptions
from validation.running.recordings import Recordings, record_case
from validation.running.sandbox import Sandbox
from validation.running.source import commit, dirty_files, tree_digest
from validation.trace import Trace


@dataclass(frozen=True, kw_only=True)
class CheckPlan:
    """What a check does.

    Attributes:
        root: the repository.
        lane: lane whose goldens judge.
        cases: in the order in which they run.
        faults: candidates for the canary.
        exact: require bit-identity.
        judge: `goldens/` of a checkout of the revision that judges this tree.
        base: that revision, where it is known.
        command: words of the command line, for provenance.
    """

    root: Path
    lane: str
    cases: Sequence[Case] = ()
    faults: Sequence[Fault] = ()
    exact: bool = False
    judge: Path | None = None
    base: str | None = None
    command: Sequence[str] = field(default_factory=lambda: ["golden", *sys.argv[1:]])

    @property
    def sources(self) -> Path:
        """The checkout whose cases, faults and declaration count: this tree, or the judge's."""
        return sources_of(self.root, self.judge)

    @property
    def overlay(self) -> Path | None:
        """The folder of the judge's modules that its runs find first; None without a judge."""
        given = os.environ.get(OVERLAY)
        return None if self.judge is None or given is None else Path(given)

    @cached_property
    def declared(self) -> Declaration:
        """What says which cases and lanes there are: the repository, or the judge's base."""
        return judged_declaration(self.root, self.judge)

    @property
    def declared_lane(self) -> Lane:
        """The lane, with what it needs."""
        return self.declared.lanes[self.lane]

    def all_cases(self) -> dict[str, Case]:
        """Every declared case, whether it is checked or not."""
        return discover_cases(self.sources, self.declared)


def describe_source(plan: CheckPlan) -> dict[str, Any]:
    """Provenance that all traces of a check share."""
    return {
        "tree_digest": tree_digest(plan.root),
        "commit": commit(plan.root),
        "dirty": dirty_files(plan.root)[:20],
        "command": list(plan.command),
        "recorded": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check that runs: its plan, and what its steps share.

    Attributes:
        plan: what it does.
        store: the tree's goldens, as they were before any run.
        base: the judge's, likewise; None without a judge.
        audit: what is on file of the tree's goldens.
        base_audit: of the base's; None without a judge.
        seal: finds what has changed since of the files that decide.
        folder: receives traces and the log.
        options: how every run is made.
        recordings: makes the runs.
        gpus: CUDA devices of the machine.
    """

    plan: CheckPlan
    store: GoldenStore
    base: GoldenStore | None
    audit: AuditLog
    base_audit: AuditLog | None
    seal: Seal
    folder: RunFolder
    options: RunOptions
    recordings: Recordings
    gpus: int

    @classmethod
    def begin(
        cls,
        plan: CheckPlan,
        folder: RunFolder,
        progress: Progress,
        sandbox: Sandbox | None = None,
    ) -> Check:
        """Begins a check, with source and goldens as they are now.

        Args:
            plan: what it does.
            folder: receives traces and the log.
            progress: told what happens.
            sandbox: where its runs are confined; None confines nothing.

        Returns:
            The check.
        """
        goldens, judge = plan.root / "goldens", plan.judge
        options = RunOptions(lane=plan.lane, declared=plan.declared_lane, sandbox=sandbox)
        # The judge's own code too: what is imported later must be what it was.
        watched = [] if judge is None else [judge.parent, *filter(None, [plan.overlay])]
        return cls(
            plan=plan,
            store=GoldenStore.keep(goldens, plan.lane),
            base=None if judge is None else GoldenStore.keep(judge, plan.lane),
            audit=AuditLog(goldens),
            base_audit=None if judge is None else AuditLog(judge),
            seal=Seal([goldens, *([] if judge is None else [judge])], watched),
            folder=folder,
            options=options,
            recordings=recordings_of(plan, folder, progress, options),
            gpus=gpu_count(),
        )

    def environment_of(self, *cases: str) -> Mapping[str, Any]:
        """The environment that the first run of these cases found itself in.

        Before any run it is this process's.
        """
        for case in cases:
            trace = self.recordings.finished(case)
            if trace is not None:
                return environment_of(trace.provenance)
        return describe(self.plan.declared_lane)

    def golden_of(self, case: str) -> Golden:
        """Loads the golden that a case's run is compared with, with the tolerances in force.

        Args:
            case: name of the case.

        Returns:
            The golden.

        Raises:
            DamagedFileError: there is none, or it or the base's is damaged.
        """
        own = self.store.nearest(self.plan.lane, case, self.environment_of(case))
        return with_base_tolerances(own, self.base)


def recordings_of(
    plan: CheckPlan, folder: RunFolder, progress: Progress, options: RunOptions | None = None
) -> Recordings:
    """Prepares the runs of a plan, with the source described as it is now.

    Args:
        plan: of the check, or of what accepts its runs.
        folder: receives the log.
        progress: told what happens.
        options: how every run is made; default: plainly.

    Returns:
        What makes the runs.
    """
    provenance = describe_source(plan)

    def record(case: Case, options: RunOptions, log: Path) -> Trace:
        return record_case(case, plan.lane, plan.root, log, provenance, options)

    return Recordings(options or RunOptions(lane=plan.lane), folder.log, record, progress)
