"""`golden check`: run the cases of a lane, compare them with their goldens, plant the canary."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from validation.cases import Case, Fault, Law, discover_cases
from validation.cases.difference import what_differs
from validation.compare import Comparison, compare, compare_law
from validation.config import Declaration
from validation.environment import describe, gpu_count
from validation.execution import RunError, RunOptions, run_case
from validation.files import DamagedFileError
from validation.goldens import Golden, GoldenStore
from validation.goldens.environments import in_words, same_stack
from validation.goldens.judge import hold_to_base, judged_declaration, vanished_cases
from validation.goldens.loosening import (
    find_loosenings,
    quarantine_in_force,
    verdict_if_accepted,
)
from validation.goldens.quarantine import apply_quarantine
from validation.machine import unfit
from validation.nearness import calibrated_here, may_be_the_machine, nearness, summary
from validation.power.canary import candidates, choose_canary, why_none
from validation.power.caught import catch_of
from validation.power.probes import shared_records, unseen_edit
from validation.reach import case_source_digest
from validation.recordings import Recordings
from validation.source import commit, dirty_files, runs_folder, tree_digest
from validation.trace import Trace, load_trace, save_trace
from validation.verdict import Canary, CaseResult, CheckResult, Verdict, worst
from validation.worker import resolve

Progress = Callable[[str], None]

# Tokens shown before and after a differing one.
_CONTEXT = 12


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
        command: words of the command line, for provenance.
    """

    root: Path
    lane: str
    cases: Sequence[Case]
    faults: Sequence[Fault]
    exact: bool = False
    judge: Path | None = None
    command: Sequence[str] = ()

    @cached_property
    def declared(self) -> Declaration:
        """What says which cases and lanes there are: the repository, or the judge's base."""
        return judged_declaration(self.root, self.judge)

    def all_cases(self) -> dict[str, Case]:
        """Every declared case, whether it is checked or not."""
        return discover_cases(self.root, self.declared)


@dataclass(frozen=True)
class RunFolder:
    """`runs/<time>-<lane>-<source digest>/`: everything that a check leaves."""

    path: Path

    @property
    def log(self) -> Path:
        """What the runs printed."""
        return self.path / "log.txt"

    def trace(self, case: str) -> Path:
        """Folder of a case's trace."""
        return self.path / "traces" / case


def new_run_folder(root: Path, lane: str, source: str) -> RunFolder:
    """Makes a run folder that no other check has."""
    runs = runs_folder(root)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    for attempt in range(1000):
        name = f"{stamp}-{lane}-{source[:12]}" + (f"-{attempt}" if attempt else "")
        path = runs / name
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return RunFolder(path)
    raise RuntimeError(f"{runs}: too many runs at {stamp}")


def run_check(plan: CheckPlan, folder: RunFolder, progress: Progress) -> CheckResult:
    """Runs and compares every case, then the canary.

    Args:
        plan: what to do.
        folder: receives traces and the log.
        progress: told what happens, a line at a time.
    """
    began = time.monotonic()
    store = GoldenStore(plan.root / "goldens")
    provenance = describe_source(plan)
    gpus = gpu_count()
    quarantine = quarantine_in_force(store.folder, plan.judge)
    results = []
    recordings = recordings_of(plan, folder, provenance, progress)
    able = [case for case in plan.cases if cannot_run(case, plan, gpus) is None]
    with recordings.ahead(able):
        for number, case in enumerate(plan.cases, start=1):
            progress(f"[{number}/{len(plan.cases)}] {case.name}: {case.description}")
            result = check_case(case, plan, store, folder, recordings, gpus)
            progress(f"[{number}/{len(plan.cases)}] {case.name}: {result.verdict}")
            results.append(result)
    if plan.judge is not None:
        results += vanished_cases(plan.judge, plan.lane, plan.all_cases())
    unquarantined = results
    results, counted = apply_quarantine(results, quarantine)
    ran = [r for r in results if r.verdict is not Verdict.SKIPPED]
    verdict = worst(counted)
    canary, message, note = None, "", ""
    if ran and any(r.compared for r in ran):
        canary, said = check_canary(plan, store, folder, results, progress)
        if canary.caught:
            note = said
        else:
            verdict, message = Verdict.INVALID, said
    elif not ran:
        message = "nothing was compared: no case ran"
    if ran and not counted:
        message = "nothing was compared: every case that ran is quarantined"
    loosened = find_loosenings(store.folder, plan.judge, plan.lane) if plan.judge else []

    def proves() -> bool:
        """Whether this tree's own tolerances would let the gate prove itself."""
        if canary is None or not canary.caught:
            return False
        if all(loosening.kind != "tolerance" for loosening in loosened):
            return True
        return check_canary(replace(plan, judge=None), store, folder, results, progress)[0].caught

    compared = [r for r in ran if r.compared]
    checked = CheckResult(
        verdict=verdict,
        lane=plan.lane,
        seconds=time.monotonic() - began,
        environment=environment_of(folder, [case.name for case in plan.cases], plan.lane),
        canary=canary,
        cases=results,
        loosened=loosened,
        if_accepted=verdict_if_accepted(loosened, unquarantined, store.folder, proves)
        if loosened
        else None,
        calibrated_here=bool(compared) and all(case.calibrated_here for case in compared),
    )
    said = message or summary(checked)
    return replace(checked, message="\n".join(filter(None, (said, note))))


def environment_of(folder: RunFolder, cases: Sequence[str], lane: str) -> dict[str, Any]:
    """The environment that the first run of a check found itself in; this process's before any."""
    for case in cases:
        if (folder.trace(case) / "trace.json").exists():
            return dict(load_trace(folder.trace(case)).provenance["environment"])
    return describe(lane)


def describe_source(plan: CheckPlan) -> dict[str, Any]:
    """Provenance that all traces of a check share."""
    return {
        "tree_digest": tree_digest(plan.root),
        "commit": commit(plan.root),
        "dirty": dirty_files(plan.root)[:20],
        "command": list(plan.command),
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def record_case(
    case: Case,
    lane: str,
    root: Path,
    log: Path,
    provenance: Mapping[str, Any],
    options: RunOptions | None = None,
) -> Trace:
    """Runs a case and completes its trace's provenance.

    Raises:
        RunError: it left no trace.
    """
    source = case_source_digest(case, root)  # before the run, which may take long
    trace = run_case(case, options or RunOptions(lane=lane), root, log)
    own = {"case_digest": case.digest, "source_digest": source, **case.declared}
    return replace(trace, provenance={**provenance, **trace.provenance, **own})


def must_repeat(case: Case, golden: Golden, trace: Trace) -> bool:
    """Whether a run owes its golden bit-identity: a deterministic case, its source, one stack.

    Other code may round differently and be right; other hardware and versions do.
    """
    same_source = golden.trace.provenance.get("source_digest") == trace.provenance.get(
        "source_digest"
    )
    found = trace.provenance.get("environment", {})
    return case.deterministic and same_source and same_stack(golden.environment, found)


def judge(golden: Golden, trace: Trace, *, exact: bool = False) -> tuple[Comparison, Verdict, str]:
    """Compares a trace with its golden and says PASS, FAIL or INVALID, and why."""
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


def recordings_of(
    plan: CheckPlan, folder: RunFolder, provenance: Mapping[str, Any], progress: Progress
) -> Recordings:
    """What makes the traces of a check."""

    def record(case: Case, options: RunOptions, log: Path) -> Trace:
        return record_case(case, plan.lane, plan.root, log, provenance, options)

    return Recordings(plan.lane, folder.log, record, progress)


def cannot_run(case: Case, plan: CheckPlan, gpus: int) -> CaseResult | None:
    """The result of a case that this machine, or what is installed on it, cannot run."""
    refusal = unfit(plan.lane, plan.declared.lanes[plan.lane], gpus)
    if refusal is not None:
        return CaseResult(case.name, Verdict.UNFIT, message=refusal)
    reason = case.needs.missing(plan.root, gpus, plan.lane)
    if reason is not None:
        return CaseResult(case.name, Verdict.SKIPPED, skipped_because=reason)
    return None


def check_case(
    case: Case,
    plan: CheckPlan,
    store: GoldenStore,
    folder: RunFolder,
    recordings: Recordings,
    gpus: int,
) -> CaseResult:
    """Compares a case's run with its golden, and with what its law refers to."""
    taken, began = 0.0, time.monotonic()

    def result(verdict: Verdict, message: str = "", **more: Any) -> CaseResult:
        seconds = taken + time.monotonic() - began
        return CaseResult(case.name, verdict, seconds=seconds, message=message, **more)

    lacking = cannot_run(case, plan, gpus)
    if lacking is not None:
        return lacking
    # A run without a golden is still worth having: it is what `golden update --from` accepts.
    try:
        recording = recordings.of(case)
    except RunError as error:
        try:
            store.nearest(plan.lane, case.name, {})
        except DamagedFileError as problem:
            return result(Verdict.INVALID, f"{problem}\nbesides, {error}")
        return result(Verdict.FAIL, str(error))
    # Runs side by side have taken longer than this one was waited for.
    trace, taken, began = recording.trace, recording.seconds, time.monotonic()
    save_trace(trace, folder.trace(case.name))
    found = trace.provenance["environment"]
    try:
        own = store.nearest(plan.lane, case.name, found)
        golden = hold_to_base(own, plan.judge)
    except DamagedFileError as error:
        return result(Verdict.INVALID, str(error))
    if golden.case_digest != case.digest:
        place = store.path(plan.lane, case.name, golden.place)
        return result(
            Verdict.INVALID,
            f"{place}: recorded of another declaration of the case"
            f"{what_differs(case, golden.trace.provenance)}; record it again with "
            f"`golden update {case.name} --reason TEXT`",
        )
    exact = plan.exact or must_repeat(case, golden, trace)
    comparison, verdict, message = judge(golden, trace, exact=exact)
    same = own.tolerances == golden.tolerances
    if_accepted = verdict if same else judge(own, trace, exact=exact)[1]
    if exact and not plan.exact and verdict is Verdict.FAIL:
        message += ", and this source on this stack made the golden: it must repeat bit for bit"
    message = "; ".join(filter(None, (message, compared_with(golden, found))))
    divergences, comparisons = list(comparison.divergences), [comparison]
    if case.law is not None and verdict is not Verdict.INVALID:
        try:
            reference = law_reference(case.law, plan, folder, recordings)
        except RunError as error:
            return result(Verdict.INVALID, f"law: {case.law.reference} left no trace: {error}")
        held = compare_law(case.law, reference, trace)
        if held.divergences:
            if_accepted = worst([if_accepted, Verdict.FAIL])
            # One that holds says how far apart its two runs are, not how near the golden is.
            comparisons.append(held)
        if held.divergences and not divergences:
            divergences = list(held.divergences)
            verdict = Verdict.FAIL
            law = f"{len(divergences)} records are not those of {case.law.reference}, as its law "
            message = "; ".join(filter(None, (f"{law}demands", message)))
    first = divergences[0] if divergences else None
    if verdict is Verdict.FAIL:
        machine = may_be_the_machine(case, golden, found, divergences, plan.lane)
        message = "; ".join(filter(None, (message, machine)))
    return result(
        verdict,
        message,
        # Of the golden's records alone: a law's two runs may round differently and be right.
        compared=comparison.compared,
        identical=comparison.identical,
        first_divergence=first,
        comparison=comparison,
        decoded=decoded_tokens(case, comparison),
        detects=golden.detectable_effect,
        if_accepted=if_accepted,
        wide=case.arithmetic == "wide",
        calibrated_here=calibrated_here(golden, found),
        **nearness(*comparisons),
    )


def compared_with(golden: Golden, found: Mapping[str, Any]) -> str:
    """Names the environment of the golden that a run was compared with; empty on the cpu lane."""
    its, ours = in_words(golden.environment), in_words(found)
    if not its:
        return ""
    return f"golden of {its}" + ("" if its == ours else f", the nearest to {ours}")


def law_reference(law: Law, plan: CheckPlan, folder: RunFolder, recordings: Recordings) -> Trace:
    """The trace of a law's reference case, of this check; run now if it was not yet.

    Raises:
        RunError: it left none, or there is no such case.
    """
    if (folder.trace(law.reference) / "trace.json").exists():
        return load_trace(folder.trace(law.reference))
    case = plan.all_cases().get(law.reference)
    if case is None:
        raise RunError(f"there is no case {law.reference}")
    trace = recordings.of(case).trace
    save_trace(trace, folder.trace(law.reference))
    return trace


def decoded_tokens(case: Case, comparison: Comparison) -> dict[str, tuple[str, str, str]]:
    """The text around the first differing token, on both sides: (before, token, after).

    Empty where no list of token ids differs, or the case does not say how to decode.
    """
    differing = (d for d in comparison.divergences if d.tensor == "tokens" and d.offset is not None)
    place = next(differing, None)
    if case.decode is None or place is None:
        return {}
    decode, at = resolve(case.decode), place.offset or 0
    texts: dict[str, tuple[str, str, str]] = {}
    for side, trace in (("golden", comparison.golden), ("actual", comparison.actual)):
        for event in trace.events:
            key, ids = event.key, event.value
            if isinstance(ids, Sequence) and (
                key.step,
                key.micro_batch,
                key.module,
                key.tensor,
                key.rank,
            ) == (place.step, place.micro_batch, place.module, place.tensor, place.rank):
                texts[side] = (
                    decode(ids[max(0, at - _CONTEXT) : at]),
                    decode(ids[at : at + 1]),
                    decode(ids[at + 1 : at + 1 + _CONTEXT]),
                )
    return texts


def check_canary(
    plan: CheckPlan,
    store: GoldenStore,
    folder: RunFolder,
    results: Sequence[CaseResult],
    progress: Progress,
) -> tuple[Canary, str]:
    """Plants a bug that a golden is proven to catch, and compares with the golden's same steps.

    First the comparison must find gross edits of a compared golden's own trace, in each kind of
    record; where no bug of the lane is proven, that is all, and the message says so.
    """
    compared = next(result.case for result in results if result.compared)
    here = environment_of(folder, [compared], plan.lane)
    edited = hold_to_base(store.nearest(plan.lane, compared, here), plan.judge)
    unseen = unseen_edit(edited, compare)
    if unseen is not None:
        return Canary("edited-trace", False), f"the gate is blind to {unseen} in {compared}"
    known = {**plan.all_cases(), **{case.name: case for case in plan.cases}}
    gpus = gpu_count()
    of_lane = [case for case in known.values() if plan.lane in case.lanes]
    able = [case for case in of_lane if case.needs.missing(plan.root, gpus, plan.lane) is None]

    def environment(name: str) -> dict[str, Any]:
        return environment_of(folder, [name, compared], plan.lane)

    found = candidates(store, plan.lane, able, plan.faults, environment, plan.judge)
    drawn = choose_canary(found, tree_digest(plan.root))
    if drawn is None:
        why = why_none(plan.faults, plan.lane)
        return Canary("edited-trace", True), f"the canary is an edited record of {compared}: {why}"
    fault, steps = drawn.fault, drawn.proof.steps
    progress(f"[canary] {fault.id}: planting {fault.imitates}")
    options = RunOptions(lane=plan.lane, settings={"stop_after": steps}, fault=fault.plant)
    try:
        trace = run_case(drawn.case, options, plan.root, folder.log)
        golden = store.load(plan.lane, drawn.case.name, drawn.place)
        golden = hold_to_base(golden, plan.judge)
    except (DamagedFileError, RunError) as error:
        # A planted bug that crashes proves nothing about the comparison.
        progress(f"[canary] {fault.id}: could not be run")
        return Canary(fault.id, False), f"the canary {fault.id} could not be run: {error}"
    catch = catch_of(compare(golden.trace.up_to(steps), trace, golden.tolerances))
    progress(f"[canary] {fault.id}: {'NOT caught' if catch is None else 'caught'}")
    blind = f"the gate is blind to {fault.id} ({fault.imitates}), planted in {drawn.case.name}"
    return Canary(fault.id, catch is not None), blind if catch is None else ""
