"""`golden check`: run the cases of a lane, compare them with their goldens, plant the canary."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from validation.cases import Case, Fault, Law, discover_cases
from validation.compare import MISSING, Comparison, compare, compare_law
from validation.config import Declaration
from validation.environment import describe, gpu_count
from validation.execution import RunError, RunOptions, run_case
from validation.files import DamagedFileError
from validation.goldens import Golden, GoldenStore
from validation.goldens.environments import in_words, same_stack
from validation.goldens.judge import hold_to_base, judged_declaration, vanished_cases
from validation.goldens.quarantine import apply_quarantine, load_quarantine
from validation.power.probes import shared_records, unseen_edit
from validation.source import commit, dirty_files, runs_folder, source_digest
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

    @property
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
    quarantine = load_quarantine(plan.judge or store.folder)
    results = []
    for number, case in enumerate(plan.cases, start=1):
        progress(f"[{number}/{len(plan.cases)}] {case.name}: {case.description}")
        result = check_case(case, plan, store, folder, provenance, gpus)
        progress(f"[{number}/{len(plan.cases)}] {case.name}: {result.verdict}")
        results.append(result)
    if plan.judge is not None:
        results += vanished_cases(plan.judge, plan.lane, plan.all_cases())
    results, counted = apply_quarantine(results, quarantine)
    ran = [r for r in results if r.verdict is not Verdict.SKIPPED]
    verdict = worst(counted)
    canary, message = None, ""
    if ran and any(r.compared for r in ran):
        canary, message = check_canary(plan, store, folder, results, progress)
        if not canary.caught:
            verdict = Verdict.INVALID
    elif not ran:
        message = "nothing was compared: no case ran"
    if ran and not counted:
        message = "nothing was compared: every case that ran is quarantined"
    return CheckResult(
        verdict=verdict,
        lane=plan.lane,
        seconds=time.monotonic() - began,
        environment=environment_of(folder, [case.name for case in plan.cases], plan.lane),
        canary=canary,
        cases=results,
        message=message,
    )


def environment_of(folder: RunFolder, cases: Sequence[str], lane: str) -> dict[str, Any]:
    """The environment that the first run of a check found itself in; this process's before any."""
    for case in cases:
        if (folder.trace(case) / "trace.json").exists():
            return dict(load_trace(folder.trace(case)).provenance["environment"])
    return describe(lane)


def describe_source(plan: CheckPlan) -> dict[str, Any]:
    """Provenance that all traces of a check share."""
    return {
        "source_digest": source_digest(plan.root),
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
    trace = run_case(case, options or RunOptions(lane=lane), root, log)
    own = {"case_digest": case.digest, "settings": dict(case.settings)}
    return replace(trace, provenance={**provenance, **trace.provenance, **own})


def must_repeat(case: Case, golden: Golden, trace: Trace) -> bool:
    """Whether a run owes its golden bit-identity: a deterministic case, one source, one stack.

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


def check_case(
    case: Case,
    plan: CheckPlan,
    store: GoldenStore,
    folder: RunFolder,
    provenance: Mapping[str, Any],
    gpus: int,
) -> CaseResult:
    began = time.monotonic()

    def result(verdict: Verdict, message: str = "", **more: Any) -> CaseResult:
        seconds = time.monotonic() - began
        return CaseResult(case.name, verdict, seconds=seconds, message=message, **more)

    needed = plan.declared.lanes[plan.lane].gpus
    if gpus < needed:
        return result(
            Verdict.UNFIT, f"lane {plan.lane} has {needed} GPU(s), this machine has {gpus}"
        )
    reason = case.needs.missing(plan.root, gpus)
    if reason is not None:
        return result(Verdict.SKIPPED, skipped_because=reason)
    # A run without a golden is still worth having: it is what `golden update --from` accepts.
    try:
        trace = record_case(case, plan.lane, plan.root, folder.log, provenance)
    except RunError as error:
        try:
            store.nearest(plan.lane, case.name, {})
        except DamagedFileError as problem:
            return result(Verdict.INVALID, f"{problem}\nbesides, {error}")
        return result(Verdict.FAIL, str(error))
    save_trace(trace, folder.trace(case.name))
    found = trace.provenance["environment"]
    try:
        golden = hold_to_base(store.nearest(plan.lane, case.name, found), plan.judge)
    except DamagedFileError as error:
        return result(Verdict.INVALID, str(error))
    if golden.case_digest != case.digest:
        place = store.path(plan.lane, case.name, golden.place)
        return result(
            Verdict.INVALID,
            f"{place}: recorded of another declaration of the case; record it again with "
            f"`golden update {case.name} --reason TEXT`",
        )
    exact = plan.exact or must_repeat(case, golden, trace)
    comparison, verdict, message = judge(golden, trace, exact=exact)
    if exact and not plan.exact and verdict is Verdict.FAIL:
        message += ", and this source on this stack made the golden: it must repeat bit for bit"
    message = "; ".join(filter(None, (message, compared_with(golden, found))))
    divergences = list(comparison.divergences)
    compared, identical = comparison.compared, comparison.identical
    if case.law is not None and verdict is not Verdict.INVALID:
        try:
            reference = law_reference(case.law, plan, folder, provenance)
        except RunError as error:
            return result(Verdict.INVALID, f"law: {case.law.reference} left no trace: {error}")
        held = compare_law(case.law, reference, trace)
        compared, identical = compared + held.compared, identical + held.identical
        if held.divergences and not divergences:
            divergences = list(held.divergences)
            verdict = Verdict.FAIL
            law = f"{len(divergences)} records are not those of {case.law.reference}, as its law "
            message = "; ".join(filter(None, (f"{law}demands", message)))
    first = divergences[0] if divergences else None
    return result(
        verdict,
        message,
        compared=compared,
        identical=identical,
        first_divergence=first,
        comparison=comparison,
        decoded=decoded_tokens(case, comparison),
        detects=golden.detectable_effect,
    )


def compared_with(golden: Golden, found: Mapping[str, Any]) -> str:
    """Names the environment of the golden that a run was compared with; empty on the cpu lane."""
    its, ours = in_words(golden.environment), in_words(found)
    if not its:
        return ""
    return f"golden of {its}" + ("" if its == ours else f", the nearest to {ours}")


def law_reference(
    law: Law, plan: CheckPlan, folder: RunFolder, provenance: Mapping[str, Any]
) -> Trace:
    """The trace of a law's reference case, of this check; run now if it was not yet.

    Raises:
        RunError: it left none, or there is no such case.
    """
    if (folder.trace(law.reference) / "trace.json").exists():
        return load_trace(folder.trace(law.reference))
    case = plan.all_cases().get(law.reference)
    if case is None:
        raise RunError(f"there is no case {law.reference}")
    trace = record_case(case, plan.lane, plan.root, folder.log, provenance)
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


def choose_canary(faults: Sequence[Fault], lane: str, source: str) -> Fault | None:
    """The fault that this source tree's check plants: the same one at every rerun."""
    fit = sorted(
        (f for f in faults if f.canary and f.canary_steps is not None and lane in f.lanes),
        key=lambda f: f.id,
    )
    return fit[int(source[:8], 16) % len(fit)] if fit else None


def check_canary(
    plan: CheckPlan,
    store: GoldenStore,
    folder: RunFolder,
    results: Sequence[CaseResult],
    progress: Progress,
) -> tuple[Canary, str]:
    """Plants a known bug for a few steps and compares with the golden's same steps.

    First the comparison must find gross edits of a compared golden's own trace, in each kind of
    record; where the repository offers no bug for the lane, that is all.
    """
    compared = next(result.case for result in results if result.compared)
    here = environment_of(folder, [compared], plan.lane)
    edited = hold_to_base(store.nearest(plan.lane, compared, here), plan.judge)
    unseen = unseen_edit(edited, compare)
    fault = choose_canary(plan.faults, plan.lane, source_digest(plan.root))
    if unseen is not None or fault is None or fault.canary_steps is None:
        message = "" if unseen is None else f"the gate is blind to {unseen} in {compared}"
        return Canary("edited-trace", unseen is None), message
    progress(f"[canary] {fault.id}: planting {fault.imitates}")
    name = fault.shown_by(plan.lane)
    blind = f"the gate is blind to {fault.id} ({fault.imitates})"
    case = {**plan.all_cases(), **{case.name: case for case in plan.cases}}.get(name)
    if case is None:
        return Canary(fault.id, False), f"{blind}: there is no case {name}"
    options = RunOptions(
        lane=plan.lane, settings={"stop_after": fault.canary_steps}, fault=fault.plant
    )
    try:
        trace = run_case(case, options, plan.root, folder.log)
        found = trace.provenance["environment"]
        golden = hold_to_base(store.nearest(plan.lane, name, found), plan.judge)
    except (DamagedFileError, RunError) as error:
        # A planted bug that crashes proves nothing about the comparison.
        return Canary(fault.id, False), f"{blind}: {error}"
    comparison = compare(golden.trace.up_to(fault.canary_steps), trace, golden.tolerances)
    caught = any(MISSING not in (d.expected, d.actual) for d in comparison.divergences)
    progress(f"[canary] {fault.id}: {'caught' if caught else 'NOT caught'}")
    return Canary(fault.id, caught), "" if caught else blind
