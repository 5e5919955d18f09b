"""`golden check --against REV`: base and head both run here and are compared bit for bit.

It uses no golden and no tolerance, so that it tells what the code moves from what a machine does.
The base is a worktree of REV. The harness (the `validation` package) is the running one on both
sides; the code in the repository, adapters included, is each side's own. A case's settings, traced
steps and processes are the head's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from validation.cases import Case
from validation.compare import compare
from validation.compare.tolerance import EXACT
from validation.diagnosis.base_runs import BaseRuns
from validation.gate.blindness import unseen_edit
from validation.gate.check import cannot_run, compare_with
from validation.gate.nearness import counted, nearness, summary
from validation.gate.plan import CheckPlan, describe_source
from validation.gate.repeat import first_difference, verdict_of
from validation.gate.verdict import Canary, CaseResult, CheckResult, Verdict, worst
from validation.goldens import Golden
from validation.goldens.golden import environment_of
from validation.progress import Progress
from validation.run_folder import RunFolder
from validation.running.environment import describe, gpu_count
from validation.running.execution import RunError
from validation.running.recordings import record_case
from validation.running.revisions import base_checkout
from validation.shortage import run_lacked
from validation.trace import Trace, load_trace, save_trace
from validation.trace.storage import HEAD

BASE_FOLDER = "base"
"""Of a run folder: the base's traces."""


def run_against(
    plan: CheckPlan, revision: str, folder: RunFolder, progress: Progress, *, every_case: bool
) -> CheckResult:
    """Runs every case of the head and of a revision, and compares them bit for bit.

    A case that moved is run again by the base: where that differs from itself, a third run says
    whether it is HARDWARE or NONDETERMINISTIC, and nothing is said of the change.

    Args:
        plan: the cases; its goldens, faults and judge are not used.
        revision: the base.
        folder: receives the head's traces in `traces/`, the base's in `base/`, and the log.
        progress: told what happens.
        every_case: whether to mention cases that only the base has.

    Returns:
        The check, with a result for each case.

    Raises:
        RepositoryError: there is no such revision.
    """
    began, gpus = time.monotonic(), gpu_count()
    needs = [path for case in plan.cases for path in case.needs.paths]
    results: list[CaseResult] = []
    with (
        base_checkout(plan.root, revision, "--against", needs) as (tree, commit),
        tempfile.TemporaryDirectory(prefix="golden-against-") as temporary,
    ):
        name = revision if commit.startswith(revision) else f"{revision} ({commit[:12]})"
        base = BaseRuns(plan.root, plan.lane, tree, Path(temporary), folder.log, name, progress)
        able: list[Case] = []
        for case in plan.cases:
            lacking = cannot_run(case, plan, gpus)
            if lacking is None:
                able.append(case)
            else:
                results.append(lacking)
        if able:
            results += _compare_all(plan, able, base, folder, progress, every_case=every_case)
    verdict = worst(result.verdict for result in results)
    canary, proof = None, ""
    compared = [result for result in results if result.comparison is not None and result.compared]
    if compared:
        canary, proof = _prove(compared[0], plan.lane)
        if not canary.caught:
            verdict = Verdict.INVALID
    checked = CheckResult(
        verdict=verdict,
        lane=plan.lane,
        seconds=time.monotonic() - began,
        environment=_environment_of(plan, folder),
        canary=canary,
        cases=results,
    )
    return replace(checked, message=_message(checked, name, proof))


def _environment_of(plan: CheckPlan, folder: RunFolder) -> Mapping[str, Any]:
    """The environment that the head's first run found itself in; before any, this process's."""
    for case in plan.cases:
        if (folder.trace(case.name) / HEAD).exists():
            return environment_of(load_trace(folder.trace(case.name)).provenance)
    return describe(plan.declared_lane)


def _message(result: CheckResult, base: str, proof: str) -> str:
    ran = [case for case in result.cases if case.compared]
    records = sum(case.compared for case in ran)
    if result.verdict is Verdict.PASS:
        first = (
            f"IDENTICAL: {counted(len(ran), 'case')} of {base} and of this tree ran here, with the "
            f"same bits in each of {records:,} records; no golden, no tolerance."
        )
    elif result.verdict is Verdict.FAIL:
        first = summary(result).partition("\n")[0]
        first = f"{first} Both {base} and this tree ran here: the machine is no reason."
    elif result.canary is not None and not result.canary.caught:
        return proof
    elif all(case.skipped_because is not None for case in result.cases):
        return "Nothing was compared: no case could run on both sides."
    else:
        return summary(result)
    return f"{first}\n{proof}"


def _prove(result: CaseResult, lane: str) -> tuple[Canary, str]:
    """Edits the base's trace grossly, in each kind of record: the comparison must find it."""
    assert result.comparison is not None
    unseen = unseen_edit(_as_golden(result.comparison.golden, lane), compare)
    if unseen is not None:
        return Canary("edited-trace", False), f"the comparison is blind to {unseen}"
    return Canary("edited-trace", True), (
        f"The comparison found gross edits of the base's trace of {result.case}, in each kind of "
        "record; without a golden no bug is planted."
    )


def _as_golden(trace: Trace, lane: str) -> Golden:
    """A trace as what is expected, with no tolerance."""
    return Golden(lane=lane, trace=trace, case_digest="", accepted={})


def _compare_all(
    plan: CheckPlan,
    cases: Sequence[Case],
    base: BaseRuns,
    folder: RunFolder,
    progress: Progress,
    *,
    every_case: bool,
) -> list[CaseResult]:
    provenance = describe_source(plan)
    try:
        known = base.run(cases, folder.path / BASE_FOLDER)
    except RunError as error:
        verdict, why = _unrun(base.name, error, folder)
        return [CaseResult(case.name, verdict, message=why) for case in cases]
    results: list[CaseResult] = []
    for number, case in enumerate(cases, start=1):
        began = time.monotonic()
        progress.started(number, len(cases), case.name, case.description)
        if case.name not in known:
            why = f"not comparable: {base.name} has no such case"
            results.append(CaseResult(case.name, Verdict.SKIPPED, skipped_because=why))
            continue
        result = _compare_case(case, plan, base, folder, provenance)
        result = replace(result, seconds=base.seconds[case.name] + time.monotonic() - began)
        progress.ended(number, len(cases), case.name, result.verdict)
        results.append(result)
    results = _without_flicker(results, cases, base, folder.path)
    if every_case:
        why = f"not comparable: {base.name} alone has it"
        mine = {case.name for case in plan.cases}
        gone = [name for name in known if name not in mine]
        results += [CaseResult(name, Verdict.SKIPPED, skipped_because=why) for name in gone]
    return results


def _compare_case(
    case: Case,
    plan: CheckPlan,
    base: BaseRuns,
    folder: RunFolder,
    provenance: Mapping[str, Any],
) -> CaseResult:
    try:
        trace = record_case(case, plan.lane, plan.root, folder.log, provenance)
    except RunError as error:
        verdict, why = _unrun("this tree", error, folder)
        return CaseResult(case.name, verdict, message=why)
    save_trace(trace, folder.trace(case.name))
    problem = base.problems[case.name]
    if problem:
        why = f"{base.name} could not be run: {problem}"
        return CaseResult(case.name, Verdict.INVALID, message=why)
    expected = load_trace(folder.path / BASE_FOLDER / case.name)
    golden = _as_golden(expected, plan.lane)
    comparison, verdict, message = compare_with(golden, trace, exact=True)
    return CaseResult(
        case.name,
        verdict,
        message=message,
        compared=comparison.compared,
        identical=comparison.identical,
        first_divergence=comparison.divergences[0] if comparison.divergences else None,
        comparison=comparison,
        wide=case.arithmetic == "wide",
        **nearness(comparison),
    )


def _unrun(what: str, error: RunError, folder: RunFolder) -> tuple[Verdict, str]:
    """The verdict where a side left no trace, and why."""
    why, lacking = f"{what} could not be run: {error}", run_lacked(error, folder.path)
    return (Verdict.INVALID, why) if lacking is None else (Verdict.UNFIT, f"{lacking}\n{why}")


def _without_flicker(
    results: Sequence[CaseResult], cases: Sequence[Case], base: BaseRuns, folder: Path
) -> list[CaseResult]:
    """The results, with another verdict for a case that moved and does not repeat itself anyway."""
    moved = {result.case: result for result in results if result.verdict is Verdict.FAIL}
    flickering: dict[str, Trace] = {}  # as they came the second time
    judged: dict[str, CaseResult] = {}
    for name, trace in _again(base, [c for c in cases if c.name in moved], folder / "again"):
        if isinstance(trace, str):
            judged[name] = _flickers(moved[name], base, Verdict.NONDETERMINISTIC, trace)
        elif first_difference(_expected(moved[name]), trace) is not None:
            flickering[name] = trace
    for name, trace in _again(base, [c for c in cases if c.name in flickering], folder / "third"):
        if isinstance(trace, str):
            judged[name] = _flickers(moved[name], base, Verdict.NONDETERMINISTIC, trace)
        else:
            repeat = verdict_of([_expected(moved[name]), flickering[name], trace], EXACT)
            judged[name] = replace(
                _flickers(moved[name], base, repeat.verdict, repeat.message), repeat=repeat
            )
    return [judged.get(result.case, result) for result in results]


def _again(
    base: BaseRuns, cases: Sequence[Case], folder: Path
) -> Iterator[tuple[str, Trace | str]]:
    """Each case as the base runs it once more; the reason where that left no trace."""
    if not cases:
        return
    try:
        base.run(cases, folder)
        problems = base.problems
    except RunError as error:
        problems = {case.name: str(error) for case in cases}
    for case in cases:
        why = problems[case.name]
        yield (
            case.name,
            f"it ran once and then did not: {why}" if why else load_trace(folder / case.name),
        )


def _expected(result: CaseResult) -> Trace:
    assert result.comparison is not None
    return result.comparison.golden


def _flickers(result: CaseResult, base: BaseRuns, verdict: Verdict, why: str) -> CaseResult:
    said = f"nothing can be said of the change: {base.name} does not repeat itself here; {why}"
    return replace(result, verdict=verdict, message=said)
