"""`golden update`: accept traces as goldens, with a reason, and leave an audit file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from validation.cases import Case
from validation.cases.difference import what_differs
from validation.compare import EXACT, compare
from validation.files import DamagedFileError
from validation.goldens.audit import author, write_audit
from validation.goldens.calibrated import GRAINS, RERUNS
from validation.goldens.canaries import Canaries
from validation.goldens.changes import Change, changes, recorded_metrics
from validation.goldens.declared import Expectation, undeclared, unknown
from validation.goldens.environments import in_words
from validation.goldens.golden import Golden, basis_of, environment_of
from validation.goldens.proposal import Proposal
from validation.goldens.store import GoldenStore, MissingGoldenError
from validation.goldens.under_way import under_way
from validation.run_folder import TRACES, hold
from validation.running.notes import grains_of
from validation.running.reach import case_source_digest
from validation.running.source import dirty_files
from validation.trace import HeldInvariant, Trace, load_trace

_NEW = "; what a change adds is declared after its run: without --expect the refusal lists it"


class RefusedError(ValueError):
    """An acceptance that is refused; the message says why and what to do."""


def refuse_dirty(root: Path, *, merging: bool = False) -> None:
    """Refuses a working tree with changes outside `goldens/`.

    Args:
        root: the repository.
        merging: a merge is under way: what it has staged is the code that will be committed.

    Raises:
        RefusedError: naming the files.
    """
    dirty = dirty_files(root, staged=not merging)
    if dirty:
        shown = ", ".join(dirty[:5]) + (", ..." if len(dirty) > 5 else "")
        todo = "resolve and `git add`" if merging else "commit"
        raise RefusedError(
            f"the working tree has {len(dirty)} change(s) outside goldens/: {shown}; {todo} them "
            "first, so that the golden's provenance names the code that made it"
        )


def propose(store: GoldenStore, lane: str, trace: Trace) -> Proposal:
    """Compares a trace with the golden it would replace, or stand beside."""
    environment = environment_of(trace.provenance)
    place = store.place_of(lane, trace.case, environment)
    if place is None:
        return _propose_beside(store, lane, trace)
    try:
        before = store.load(lane, trace.case, place)
    except DamagedFileError as error:
        note = f" (replaces a damaged golden: {error})"
        return Proposal(lane, trace, None, (), note=note, place=place)
    return propose_after(before, trace, place)


def propose_after(before: Golden, trace: Trace, place: str) -> Proposal:
    """Puts a trace after a golden, at a place, and says what moves beyond its tolerances."""
    comparison = compare(before.trace, trace, before.tolerances)
    return Proposal(
        before.lane,
        trace,
        before,
        changes(comparison),
        identical=comparison.identical,
        compared=comparison.compared,
        place=place,
    )


def _propose_beside(store: GoldenStore, lane: str, trace: Trace) -> Proposal:
    """A golden of an environment that has none yet, shown against the nearest one's."""
    environment = environment_of(trace.provenance)
    place = store.free_place(lane, trace.case, environment)
    try:
        nearest = store.nearest(lane, trace.case, environment)
    except MissingGoldenError:
        return Proposal(lane, trace, None, (), place=place)
    except DamagedFileError as error:
        note = f" (beside a damaged golden: {error})"
        return Proposal(lane, trace, None, (), note=note, place=place)
    comparison = compare(nearest.trace, trace)
    facts = [d for d in comparison.divergences if d.relative_error is None]
    note = (
        f" in {in_words(environment)}; {comparison.identical} of {comparison.compared} are "
        f"bit-identical to those of {in_words(nearest.environment)}, {len(facts)} fact(s) are other"
    )
    moved = changes(replace(comparison, divergences=facts))
    return Proposal(lane, trace, None, moved, note=note, place=place)


class UndeclaredError(RefusedError):
    """A record that moved and is not declared, or a declaration of something that did not move.

    Args:
        message: for the user.
        declarations: the attribute.

    Attributes:
        declarations: what to declare instead, complete: those given that match a movement, and
            one for each undeclared movement.
    """

    declarations: Sequence[Expectation]

    def __init__(self, message: str, declarations: Sequence[Expectation]) -> None:
        super().__init__(message)
        self.declarations = declarations


def refuse_undeclared(proposals: Sequence[Proposal], expected: Sequence[Expectation]) -> None:
    """Refuses records that moved undeclared, and declarations of what did not move.

    Args:
        proposals: what would be accepted.
        expected: what the user declared with `--expect`.

    Raises:
        UndeclaredError: naming every one.
    """
    moved: dict[str, list[Change]] = {}  # of a case on all lanes, which a declaration covers
    for proposal in proposals:
        moved.setdefault(proposal.trace.case, []).extend(proposal.changed)
    missing = {case: undeclared(case, found, expected) for case, found in moved.items()}
    matched = [e for e in expected if any(e.covers(e.case, c) for c in moved.get(e.case, ()))]
    idle = [str(e) for e in expected if e not in matched]
    wrong = []
    if names := sum(len(movement.changes) for found in missing.values() for movement in found):
        wrong.append(f"movement that was not declared, of {names} name(s)")
    if idle:
        wrong.append(f"nothing moved like --expect {', '.join(idle)}")
    if wrong:
        needed = [m.declared(case) for case, found in missing.items() for m in found]
        raise UndeclaredError("; ".join(wrong), [*matched, *needed])


def refuse_broken(traces: Iterable[Trace]) -> None:
    """Refuses runs that broke an invariant: as goldens they would let every such run pass.

    Args:
        traces: what would be accepted.

    Raises:
        RefusedError: naming the first of each case, and how many there are.
    """
    told = []
    for trace in traces:
        broken = [
            (event.key, event.value)
            for event in trace.events
            if isinstance(event.value, HeldInvariant) and not event.value.holds
        ]
        if broken:
            key, value = broken[0]
            more = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
            told.append(
                f"case {trace.case}: step {key.step}, {key.module}, rank {key.rank}: {value.name} "
                f"does not hold: {value.error}, at most {value.bound}{more}"
            )
    if told:
        raise RefusedError(
            "a golden must hold the invariants of its case; mend the code, or the invariant\n"
            + "\n".join(told)
        )


def refuse_unknown(
    store: GoldenStore,
    cases: Mapping[str, Sequence[str]],
    expected: Sequence[Expectation],
    traces: Sequence[Trace] = (),
) -> None:
    """Refuses declarations that no record can match, before anything is trained.

    Args:
        store: the goldens.
        cases: case -> lanes on which it is to be accepted.
        expected: the declarations.
        traces: of runs that exist already, which may hold records that no golden has.

    Raises:
        RefusedError: naming the first.
    """
    for expectation in expected:
        name, goldens = expectation.case, []
        for lane in cases.get(name, ()):
            for place in store.places(lane, name):
                with contextlib.suppress(DamagedFileError):  # it is there to be replaced
                    goldens.append(store.load(lane, name, place).trace)
        if name in cases and not goldens:
            raise RefusedError(
                f"--expect {expectation}: {name} has no golden on "
                f"{', '.join(cases[name])} that could move; leave the declaration out"
            )
        runs = [trace for trace in traces if trace.case == name]
        metrics = sorted(set().union(*(recorded_metrics(t) for t in (*goldens, *runs))))
        reason = unknown(expectation, cases, metrics)
        if reason is not None:
            raise RefusedError(
                f"--expect {expectation}: {reason}" + ("" if runs or name not in cases else _NEW)
            )


def refuse_missing_lanes(
    store: GoldenStore, proposals: Sequence[Proposal], cases: Mapping[str, Case]
) -> None:
    """Refuses to move a case on some of its lanes only: the others' goldens would be of old code.

    Args:
        store: the goldens.
        proposals: what would be accepted.
        cases: every declared case, by name.

    Raises:
        RefusedError: naming the case and the lane that is missing.
    """
    given = {(proposal.lane, proposal.trace.case) for proposal in proposals}
    for proposal in proposals:
        name = proposal.trace.case
        for lane in cases[name].lanes if proposal.changed else ():
            if (lane, name) not in given and name in store.names(lane):
                raise RefusedError(
                    f"case {name} moves on lane {proposal.lane} and has a golden on lane {lane}, "
                    f"too, of which --from has no run; give that run as well, or --lane "
                    f"{proposal.lane} to accept this lane alone"
                )


def load_runs(
    folders: Sequence[Path], root: Path, cases: Mapping[str, Case], wanted: Sequence[str]
) -> list[tuple[str, Trace]]:
    """Traces of runs made elsewhere, held against this tree's source of their cases.

    Args:
        folders: run folders, one or several lanes'.
        root: the repository, whose source of each case must have made its run.
        cases: declared here.
        wanted: names given by the user; empty for all in the folders.

    Returns:
        (lane, trace) pairs.

    Raises:
        RefusedError: a folder without traces, of another source or declaration of a case, altered,
            or lacking a wanted case on a lane.
    """
    found: dict[tuple[str, str], Trace] = {}
    lanes: dict[str, Path] = {}
    for folder in folders:
        hold(folder)
        heads = sorted((folder / TRACES).glob("*/trace.json"))
        if not heads:
            raise RefusedError(f"{folder}: no traces; give a folder that `golden check` left")
        for head in heads:
            try:
                trace = load_trace(head.parent)
            except DamagedFileError as error:
                raise RefusedError(str(error)) from error
            lane = str(trace.provenance.get("environment", {}).get("lane"))
            lanes[lane] = folder
            if wanted and trace.case not in wanted:
                continue
            _refuse_foreign(head.parent, trace, root, cases)
            if (lane, trace.case) in found:
                raise RefusedError(f"{head.parent}: {lane}/{trace.case} is in two run folders")
            found[lane, trace.case] = trace
    for name in wanted:
        lacking = [
            lane for lane in cases[name].lanes if (lane, name) not in found and lane in lanes
        ]
        if lacking or not any(case == name for _, case in found):
            where = ", ".join(lacking) or "every lane given"
            raise RefusedError(f"case {name} is missing on {where} in --from")
    return [(lane, trace) for (lane, _), trace in found.items()]


def _refuse_foreign(folder: Path, trace: Trace, root: Path, cases: Mapping[str, Case]) -> None:
    provenance = trace.provenance
    case = cases.get(trace.case)
    if case is None:
        raise RefusedError(f"{folder}: there is no case {trace.case} here")
    if provenance.get("case_digest") != case.digest:
        raise RefusedError(
            f"{folder}: recorded of another declaration of case {case.name}"
            f"{what_differs(case, provenance)}"
        )
    source = case_source_digest(case, root)
    if provenance.get("source_digest") != source:
        raise RefusedError(
            f"{folder}: recorded from another source tree ({provenance.get('source_digest')}, "
            f"commit {provenance.get('commit')}); what case {case.name} reaches is {source} here"
        )


def accept(
    store: GoldenStore,
    root: Path,
    proposals: Sequence[Proposal],
    cases: Mapping[str, Case],
    reason: str,
    expected: Sequence[Expectation],
) -> Path:
    """Writes the goldens and the audit file.

    Everything is checked before the first byte is written. The audit file comes first, so that no
    golden is ever without one; each golden is replaced by one rename. What a process that is killed
    in between leaves is known (`validation.goldens.under_way`).

    Args:
        store: the goldens.
        root: the repository.
        proposals: what is accepted.
        cases: every declared case, by name.
        reason: why.
        expected: the movements that were declared.

    Returns:
        The audit file.

    Raises:
        StaleGoldenError: another process has written a golden since it was proposed to replace it.
    """
    accepted = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "author": author(root),
        "reason": reason,
    }
    goldens = [
        Golden(
            lane=p.lane,
            trace=p.trace,
            case_digest=cases[p.trace.case].digest,
            accepted=accepted,
            tolerances=p.before.tolerances if p.before else EXACT,
            calibration=_kept_calibration(p.before) if p.before else {},
            detectable_effect=p.before.detectable_effect if p.before else {},
            place=p.place,
            canaries=p.before.canaries if p.before else Canaries(),
        )
        for p in proposals
    ]
    # What was proven against another trace is not proven against this one.
    goldens = [
        g if g.canaries.against == basis_of(g) else replace(g, canaries=Canaries()) for g in goldens
    ]
    with store.lock(), under_way(store):
        for proposal in proposals:
            place = proposal.before.place if proposal.before else proposal.place
            store.refuse_stale(proposal.lane, proposal.trace.case, place, proposal.before)
        audit = write_audit(store, root, accepted, proposals, expected)
        for proposal, golden in zip(proposals, goldens, strict=True):
            store.save(golden)
            if proposal.before is not None and proposal.before.place != golden.place:
                store.remove(proposal.before)
    return audit


def _kept_calibration(before: Golden) -> Mapping[str, Any]:
    """What a golden's successor keeps of its calibration, with the grains that it was made with.

    Older calibrations have them in the notes of their golden's trace alone, which is replaced.
    """
    record = before.calibration
    if "factor" not in record or RERUNS in record or GRAINS in record:
        return record
    return {**record, GRAINS: grains_of([before.trace])}
