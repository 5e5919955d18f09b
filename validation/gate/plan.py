"""What a check does, and what its steps share."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from validation.cases import Case, Fault, discover_cases
from validation.config import Declaration, Lane
from validation.gate.base import judged_declaration
from validation.goldens import GoldenStore
from validation.progress import Progress
from validation.run_folder import RunFolder
from validation.running.environment import describe, gpu_count
from validation.running.execution import RunOptions
from validation.running.recordings import Recordings, record_case
from validation.running.source import commit, dirty_files, tree_digest
from validation.trace import Trace, load_trace


@dataclass(frozen=True, kw_only=True)
class CheckPlan:
    """What a check does.

    Attributes:
        root: the repository.
        lane: lane whose goldens judge.
        cases: in the order in which they run.
        faults: candidates for the canary.
        exact: require bit-identity.
        judge: `goldens/` of the revision whose tolerances and case list judge this tree.
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
        return discover_cases(self.root, self.declared)


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
        store: the tree's goldens.
        folder: receives traces and the log.
        recordings: makes the runs.
        gpus: CUDA devices of the machine.
    """

    plan: CheckPlan
    store: GoldenStore
    folder: RunFolder
    recordings: Recordings
    gpus: int

    @classmethod
    def begin(cls, plan: CheckPlan, folder: RunFolder, progress: Progress) -> Check:
        """A check that is about to run, with the source described as it is now."""
        return cls(
            plan=plan,
            store=GoldenStore(plan.root / "goldens"),
            folder=folder,
            recordings=recordings_of(plan, folder, progress),
            gpus=gpu_count(),
        )

    def environment_of(self, *cases: str) -> Mapping[str, Any]:
        """The environment that the first run of these cases found itself in."""
        return environment_of(self.plan, self.folder, cases)


def environment_of(plan: CheckPlan, folder: RunFolder, cases: Iterable[str]) -> Mapping[str, Any]:
    """The environment that the first run of these cases found itself in.

    Before any run it is this process's.
    """
    for case in cases:
        if (folder.trace(case) / "trace.json").exists():
            return dict(load_trace(folder.trace(case)).provenance["environment"])
    return describe(plan.declared_lane)


def recordings_of(plan: CheckPlan, folder: RunFolder, progress: Progress) -> Recordings:
    """What makes the runs of a plan, with the source described as it is now."""
    provenance = describe_source(plan)

    def record(case: Case, options: RunOptions, log: Path) -> Trace:
        return record_case(case, plan.lane, plan.root, log, provenance, options)

    return Recordings(plan.lane, folder.log, record, progress)
