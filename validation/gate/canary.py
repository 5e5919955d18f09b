"""The canary of a check: a planted bug that a golden is proven to catch.

First the comparison must find gross edits of a compared golden's own trace, in each kind of record
(`validation.gate.blindness`). Where no bug of the lane is proven, the
check does no more, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from validation.compare import compare
from validation.files import DamagedFileError
from validation.gate.base import with_base_tolerances
from validation.gate.blindness import unseen_edit
from validation.gate.plan import Check
from validation.gate.verdict import Canary
from validation.goldens.proven import Candidate, candidates, choose_canary, why_none
from validation.progress import Progress
from validation.running.execution import RunError, run_case
from validation.running.source import tree_digest

EDITED_TRACE = "edited-trace"
"""The canary's name where nothing was planted but edits of a golden's trace."""


def check_canary(check: Check, compared: Sequence[str], progress: Progress) -> tuple[Canary, str]:
    """Plants a proven bug and compares with the golden's same steps.

    Args:
        check: the check that proves itself.
        compared: names of the cases that it has compared; one at least.
        progress: told what happens.

    Returns:
        The canary, and what is to be said of it.
    """
    plan, first = check.plan, compared[0]
    unseen = unseen_edit(check.golden_of(first), compare)
    if unseen is not None:
        return Canary(EDITED_TRACE, False), f"the gate is blind to {unseen} in {first}"
    drawn = _draw(check, first)
    if drawn is None:
        why = why_none(plan.faults, plan.lane)
        return Canary(EDITED_TRACE, True), f"the canary is an edited record of {first}: {why}"
    progress.message(f"[canary] {drawn.fault.id}: planting {drawn.fault.imitates}")
    return _plant(check, drawn, progress)


def _draw(check: Check, first: str) -> Candidate | None:
    """One of the bugs that this machine can plant, the same at every rerun of this source tree."""
    plan = check.plan
    known = {**plan.all_cases(), **{case.name: case for case in plan.cases}}
    able = [
        case
        for case in known.values()
        if plan.lane in case.lanes
        and case.needs.missing(plan.root, check.gpus, plan.declared_lane) is None
    ]

    def environment(name: str) -> Mapping[str, Any]:
        return check.environment_of(name, first)

    found = candidates(check.store, plan.lane, able, plan.faults, environment, check.base)
    return choose_canary(found, tree_digest(plan.root))


def _plant(check: Check, drawn: Candidate, progress: Progress) -> tuple[Canary, str]:
    plan, fault, steps = check.plan, drawn.fault, drawn.proof.steps
    options = replace(check.options, settings={"stop_after": steps}, fault=fault.plant)
    try:
        trace = run_case(drawn.case, options, plan.root, check.folder.log)
        golden = check.store.load(plan.lane, drawn.case.name, drawn.place)
        golden = with_base_tolerances(golden, check.base)
    except (DamagedFileError, RunError) as error:
        # A planted bug that crashes proves nothing about the comparison.
        progress.message(f"[canary] {fault.id}: could not be run")
        return Canary(fault.id, False), f"the canary {fault.id} could not be run: {error}"
    caught = compare(golden.trace.up_to(steps), trace, golden.tolerances).caught
    progress.message(f"[canary] {fault.id}: {'NOT caught' if caught is None else 'caught'}")
    if caught is not None:
        return Canary(fault.id, True), ""
    return Canary(fault.id, False), (
        f"the gate is blind to {fault.id} ({fault.imitates}), planted in {drawn.case.name}"
    )
