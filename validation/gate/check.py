"""`golden check`: run the cases of a lane, compare them with their goldens, plant the canary."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from validation.calibration.derived import refuse_underived
from validation.cases import Case, Invariant
from validation.cases.difference import what_differs
from validation.compare import Comparison, Divergence, compare, compare_invariant
from validation.files import DamagedFileError
from validation.gate.base import golden_of_base, vanished_cases
from validation.gate.blind_spots import blind_spots
from validation.gate.blindness import shared_records
from validation.gate.canary import check_canary
from validation.gate.declared import names_declared
from validation.gate.fresh import FreshRuns
from validation.gate.loosening import find_loosenings, quarantine_in_force, verdict_if_accepted
from validation.gate.nearness import calibrated_here, may_be_the_machine, nearness, summary
from validation.gate.plan import Check, CheckPlan
from validation.gate.quarantine import apply_quarantine
from validation.gate.repeat import repeat_failed
from validation.gate.tokens import decoded_tokens
from validation.gate.verdict import CaseResult, CheckResult, Judged, Loosening, Verdict, worst
from validation.goldens import Golden
from validation.goldens.environments import in_words, same_stack
from validation.progress import Lines, Progress
from validation.run_folder import RunFolder
from validation.running.execution import RunError, close_parents
from validation.running.machine import unfit
from validation.running.recordings import Recording
from validation.running.revisions import link_needs
from validation.running.sandbox import Sandbox, why_no_sandbox
from validation.shortage import run_lacked
from validation.trace import Trace, save_trace


def run_check(plan: CheckPlan, folder: RunFolder, progress: Progress) -> CheckResult:
    """Runs and compares every case, then the canary, then what a judge demands besides.

    Args:
        plan: what to do.
        folder: receives traces and the log.
        progress: told what happens.

    Returns:
        The check, with a result for each case.
    """
    if plan.judge is None:
        return _checked(Check.begin(plan, folder, progress), progress)
    no_sandbox = why_no_sandbox()
    # What the base's own run, and texts of its tokens, may need.
    needs = [path for case in plan.cases for path in case.needs.paths]
    link_needs(plan.root, plan.sources, needs)
    with tempfile.TemporaryDirectory(prefix="golden-scratch-") as scratch:
        hidden = (plan.root / "goldens", plan.judge.parent)
        sandbox = None if no_sandbox else Sandbox(Path(scratch), hidden)
        try:
            return _checked(Check.begin(plan, folder, progress, sandbox), progress, no_sandbox)
        finally:
            close_parents()  # they write below the scratch folder


def _checked(check: Check, progress: Progress, no_sandbox: str = "") -> CheckResult:
    plan, began = check.plan, time.monotonic()
    # Read before any run: what is declared during the check does not count in it.
    quarantine = quarantine_in_force(check.store.folder, plan.judge)
    unquarantined = _check_cases(check, progress)
    results, counted = apply_quarantine(unquarantined, quarantine)
    compared = [r for r in results if r.verdict is not Verdict.SKIPPED and r.compared]
    verdict, message, note = worst(counted), "", ""
    canary, fresh = None, None
    if compared:
        with _fresh_runs(check, verdict, results, progress) as runs:
            canary, said = check_canary(check, [r.case for r in compared], progress)
            fresh = runs.result() if runs is not None else None
        note = "\n".join(filter(None, (said, "" if fresh is None else fresh.describe())))
        if not canary.caught:
            lacking = run_lacked(RunError(said), check.folder.path)
            verdict = Verdict.INVALID if lacking is None else worst([verdict, Verdict.UNFIT])
            message, note = "\n".join(filter(None, (lacking, note))), ""
        elif fresh is not None and fresh.held is False:
            verdict, message, note = Verdict.INVALID, note, ""
    if all(r.verdict is Verdict.SKIPPED for r in results):
        message = "nothing was compared: no case ran"
    elif not counted:
        message = "nothing was compared: every case that ran is quarantined"
    loosened = find_loosenings(check.store.folder, plan.judge, plan.lane) if plan.judge else []
    broken = check.seal.broken()
    if broken:
        verdict, message = Verdict.INVALID, _changed(broken, plan.root)

    def proves() -> bool:
        """Whether this tree's own tolerances would let the gate prove itself."""
        return canary is not None and canary.caught and _own_canary(check, compared, loosened)

    checked = CheckResult(
        verdict=verdict,
        lane=plan.lane,
        seconds=time.monotonic() - began,
        environment=check.environment_of(*(case.name for case in plan.cases)),
        canary=canary,
        cases=results,
        loosened=loosened,
        if_accepted=verdict_if_accepted(loosened, unquarantined, check.store.folder, proves)
        if loosened
        else None,
        calibrated_here=bool(compared) and all(case.calibrated_here for case in compared),
        judged=None if plan.judge is None else Judged(no_sandbox, fresh),
    )
    lines = [message or summary(checked), note, blind_spots(plan)]
    if no_sandbox:
        lines.append(f"The change's code ran without a sandbox: {no_sandbox}.")
    return replace(checked, message="\n".join(filter(None, lines)))


def _check_cases(check: Check, progress: Progress) -> list[CaseResult]:
    """The results of the plan's cases, and of those that the base alone still has."""
    plan, results = check.plan, []
    able = [case for case in plan.cases if cannot_run(case, plan, check.gpus) is None]
    with check.recordings.ahead(able):
        for number, case in enumerate(plan.cases, start=1):
            progress.started(number, len(plan.cases), case.name, case.description)
            result = check_case(case, check)
            progress.ended(number, len(plan.cases), case.name, result.verdict)
            results.append(result)
    results = repeat_failed(check, results, progress)
    if check.base is not None:
        declared = names_declared(plan.root, plan.overlay, check.options.sandbox)
        results += vanished_cases(check.base, plan.lane, declared)
    return results


@contextlib.contextmanager
def _fresh_runs(
    check: Check, verdict: Verdict, results: Sequence[CaseResult], progress: Progress
) -> Iterator[FreshRuns | None]:
    """The runs with fresh inputs of a judged check that passes so far; the base's begins now."""
    if check.base is None or verdict is not Verdict.PASS:
        yield None
        return
    with FreshRuns(check, results, progress) as runs:
        yield runs


def _changed(broken: Sequence[Path], root: Path) -> str:
    names = [str(p.relative_to(root) if p.is_relative_to(root) else p) for p in broken]
    more = f" and {len(names) - 1} more files" if len(names) > 1 else ""
    return (
        f"{names[0]}{more} changed while the check ran: a run, or somebody beside it, has written "
        "to what decides; restore it (git checkout goldens), then check again"
    )


def _own_canary(
    check: Check, compared: Sequence[CaseResult], loosened: Sequence[Loosening]
) -> bool:
    """Whether the canary is caught at the tree's own tolerances, where these are looser."""
    if all(loosening.kind != "tolerance" for loosening in loosened):
        return True
    own = replace(check, base=None)
    return check_canary(own, [r.case for r in compared], Lines(lambda line: None))[0].caught


# --- one case: run, load, compare, apply its invariant, decide -------------------------------


class _NoVerdictError(Exception):
    """The case ends before anything was compared.

    Args:
        verdict: FAIL or INVALID.
        message: why.
    """

    def __init__(self, verdict: Verdict, message: str) -> None:
        super().__init__(message)
        self.verdict = verdict


@dataclass(frozen=True)
class _Expected:
    """What a case is compared with.

    Attributes:
        golden: the tree's, with the tolerances that are in force.
        own: the same with the tree's own tolerances.
        exact: whether every record must match bit for bit.
        must_repeat: whether it must because this source made the golden on this stack.
    """

    golden: Golden
    own: Golden
    exact: bool
    must_repeat: bool


@dataclass(frozen=True)
class _Judgement:
    """What the comparisons of a case say.

    Attributes:
        verdict: at the tolerances in force.
        if_accepted: at the tree's own.
        messages: why it is no PASS, and what else to know.
        comparison: with the golden.
        divergences: of the golden, or of the invariant where the golden's records all match.
        broken: the comparison of an invariant that does not hold.
    """

    verdict: Verdict
    if_accepted: Verdict
    messages: Sequence[str]
    comparison: Comparison
    divergences: Sequence[Divergence]
    broken: Comparison | None = None


def check_case(case: Case, check: Check) -> CaseResult:
    """Compares a case's run with its golden, and with the run that its invariant refers to."""
    lacking = cannot_run(case, check.plan, check.gpus)
    if lacking is not None:
        return lacking
    began, waited = time.monotonic(), 0.0
    # Runs side by side take longer than this one was waited for.
    seconds = 0.0
    try:
        recording = _run(case, check)
        waited, seconds = time.monotonic() - began, recording.seconds
        expected = _load(case, check, recording.trace)
        judgement = _compare(expected, recording.trace)
        if case.invariant is not None and judgement.verdict is not Verdict.INVALID:
            judgement = _apply(case.invariant, check, judgement, recording.trace)
        result = _decide(case, check.plan, expected, judgement, recording.trace)
    except _NoVerdictError as reason:
        result = CaseResult(case.name, reason.verdict, message=str(reason))
    return replace(result, seconds=seconds + time.monotonic() - began - waited)


def cannot_run(case: Case, plan: CheckPlan, gpus: int) -> CaseResult | None:
    """The result of a case that this machine, or what is installed on it, cannot run."""
    refusal = unfit(plan.declared_lane, gpus)
    if refusal is not None:
        return CaseResult(case.name, Verdict.UNFIT, message=refusal)
    reason = case.needs.missing(plan.root, gpus, plan.declared_lane)
    if reason is not None:
        return CaseResult(case.name, Verdict.SKIPPED, skipped_because=reason)
    return None


def _run(case: Case, check: Check) -> Recording:
    """The case's run, its trace saved.

    A run without a golden is still worth having: it is what `golden update --from` accepts.
    """
    try:
        recording = check.recordings.of(case)
    except RunError as error:
        lacking = run_lacked(error, check.folder.path)
        if lacking is not None:
            raise _NoVerdictError(Verdict.UNFIT, f"{lacking}\n{error}") from error
        try:
            check.store.nearest(check.plan.lane, case.name, {})
        except DamagedFileError as problem:
            raise _NoVerdictError(Verdict.INVALID, f"{problem}\nbesides, {error}") from error
        raise _NoVerdictError(Verdict.FAIL, str(error)) from error
    save_trace(recording.trace, check.folder.trace(case.name))
    return recording


def _load(case: Case, check: Check, trace: Trace) -> _Expected:
    """The golden that is nearest to where the case ran, its tolerances worked out again."""
    plan, store = check.plan, check.store
    try:
        own = store.nearest(plan.lane, case.name, trace.provenance["environment"])
        refuse_underived(own, check.audit)
        base = golden_of_base(own, check.base)
        if base is not None and check.base_audit is not None:
            refuse_underived(base, check.base_audit)
        golden = own if base is None else replace(own, tolerances=base.tolerances)
    except DamagedFileError as error:
        raise _NoVerdictError(Verdict.INVALID, str(error)) from error
    if golden.case_digest != case.digest:
        place = store.path(plan.lane, case.name, golden.place)
        differs = what_differs(case, golden.trace.provenance)
        raise _NoVerdictError(
            Verdict.INVALID,
            f"{place}: recorded of another declaration of the case{differs}; record it again with "
            f"`golden update {case.name} --reason TEXT`",
        )
    repeats = must_repeat(case, golden, trace)
    return _Expected(golden, own, exact=plan.exact or repeats, must_repeat=repeats)


def must_repeat(case: Case, golden: Golden, trace: Trace) -> bool:
    """Whether a run must match its golden bit for bit: a deterministic case, its source, one stack.

    Other code may round differently and be right; other hardware and versions do.
    """
    same_source = golden.trace.provenance.get("source_digest") == trace.provenance.get(
        "source_digest"
    )
    found = trace.provenance.get("environment", {})
    return case.deterministic and same_source and same_stack(golden.environment, found)


def _compare(expected: _Expected, trace: Trace) -> _Judgement:
    comparison, verdict, message = compare_with(expected.golden, trace, exact=expected.exact)
    if_accepted = verdict
    if expected.own.tolerances != expected.golden.tolerances:
        if_accepted = compare_with(expected.own, trace, exact=expected.exact)[1]
    if expected.must_repeat and verdict is Verdict.FAIL:
        message += ", and this source on this stack made the golden: it must match bit for bit"
    return _Judgement(verdict, if_accepted, [message], comparison, comparison.divergences)


def compare_with(
    golden: Golden, trace: Trace, *, exact: bool = False
) -> tuple[Comparison, Verdict, str]:
    """Compares a trace with a golden and says PASS, FAIL or INVALID, and why.

    Args:
        golden: what is expected, and its tolerances.
        trace: of the run.
        exact: whether every record must match bit for bit.

    Returns:
        The comparison, the verdict, and why it is no PASS (empty where it is one).
    """
    comparison = compare(golden.trace, trace, golden.tolerances, exact=exact)
    if comparison.compared == 0:
        return comparison, Verdict.INVALID, "nothing was compared: the traces share no record"
    if comparison.divergences:
        count = len(comparison.divergences)
        return comparison, Verdict.FAIL, f"{count} of {comparison.compared} records differ"
    shared = shared_records(golden.trace, trace)
    if comparison.compared != shared:
        message = f"{comparison.compared} of {shared} records were compared: the gate is blind"
        return comparison, Verdict.INVALID, message
    return comparison, Verdict.PASS, ""


def _apply(invariant: Invariant, check: Check, judgement: _Judgement, trace: Trace) -> _Judgement:
    """The judgement with the case's invariant: a relation to another case's run of this check."""
    try:
        reference = _reference(invariant, check)
    except RunError as error:
        raise _NoVerdictError(
            Verdict.INVALID, f"invariant: {invariant.reference} left no trace: {error}"
        ) from error
    held = compare_invariant(invariant, reference, trace)
    if not held.divergences:
        return judgement
    broken = replace(
        judgement, if_accepted=worst([judgement.if_accepted, Verdict.FAIL]), broken=held
    )
    if judgement.divergences:
        return broken
    count = len(held.divergences)
    said = (
        f"{count} records are not those of {invariant.reference}, as the case's invariant demands"
    )
    return replace(
        broken,
        verdict=Verdict.FAIL,
        messages=[said, *judgement.messages],
        divergences=held.divergences,
    )


def _reference(invariant: Invariant, check: Check) -> Trace:
    """The run of an invariant's reference case, of this check; made now if it was not yet.

    Raises:
        RunError: it left no trace, or there is no such case.
    """
    case = check.plan.all_cases().get(invariant.reference)
    if case is None:
        raise RunError(f"there is no case {invariant.reference}")
    trace = check.recordings.of(case).trace
    save_trace(trace, check.folder.trace(invariant.reference))
    return trace


def _decide(
    case: Case, plan: CheckPlan, expected: _Expected, judgement: _Judgement, trace: Trace
) -> CaseResult:
    """The case's result: its verdict, and what a reader needs to understand it."""
    golden, found = expected.golden, trace.provenance["environment"]
    messages = [*judgement.messages, compared_with(golden, found)]
    if judgement.verdict is Verdict.FAIL:
        messages.append(may_be_the_machine(case, golden, found, judgement.divergences, plan.lane))
    # An invariant that holds says how far apart its two runs are, not how near the golden is.
    comparisons = [judgement.comparison, *([judgement.broken] if judgement.broken else [])]
    return CaseResult(
        case.name,
        judgement.verdict,
        message="; ".join(filter(None, messages)),
        # Of the golden's records alone: an invariant's two runs may round differently.
        compared=judgement.comparison.compared,
        identical=judgement.comparison.identical,
        first_divergence=judgement.divergences[0] if judgement.divergences else None,
        comparison=judgement.comparison,
        decoded=decoded_tokens(case, judgement.comparison),
        detects=golden.detectable_effect,
        if_accepted=judgement.if_accepted,
        wide=case.arithmetic == "wide",
        calibrated_here=calibrated_here(golden, found),
        **nearness(*comparisons),
    )


def compared_with(golden: Golden, found: Mapping[str, Any]) -> str:
    """Names the environment of the golden that a run was compared with; empty without GPUs."""
    its, ours = in_words(golden.environment), in_words(found)
    if not its:
        return ""
    return f"golden of {its}" + ("" if its == ours else f", the nearest to {ours}")
