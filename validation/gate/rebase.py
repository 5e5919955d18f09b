"""`golden rebase`: record goldens again that no code change has made wrong.

After a merge in which both sides accepted a case, the merged code is recorded, and both reasons
stay in the audit. After an environment bump (a new image, driver or library) goldens move to the
new environment only if the code is provably the same and its drift is what calibration knows:

- one source of the case made the old run and the new run, and is checked out here;
- the old run passes its environment's golden at the frozen tolerances;
- the new environment has no golden of its own, which `golden update` would replace;
- the new run differs from the golden by at most `GROWTH` tolerances, and in no discrete record;
- no fault that the golden killed before survives against the new one; a fault that is declared
  equivalent, that it did not kill, or that cannot be planted is no reason to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from validation.cases import Case, Fault
from validation.compare import Catch, Tolerances, compare
from validation.files import DamagedFileError, decode_json, read_file
from validation.goldens.acceptance import RefusedError, load_runs, propose_after
from validation.goldens.calibrated import widened
from validation.goldens.canaries import Proof
from validation.goldens.changes import changes
from validation.goldens.declared import movements
from validation.goldens.environments import identity, in_words
from validation.goldens.golden import Golden, environment_of
from validation.goldens.layout import HEAD
from validation.goldens.merge import conflict_reasons
from validation.goldens.proposal import Proposal
from validation.goldens.proven import fit
from validation.goldens.sides import goldens_of_sides
from validation.goldens.store import GoldenStore
from validation.power.proof import proof_of
from validation.run_folder import TRACES
from validation.running.execution import RunError
from validation.trace import Trace

GROWTH = 10.0
"""How many tolerances a new environment may move a floating record."""


MERGE_REASON = "merge of: "
"""How the reason of a golden begins that records a merge."""


class Rerun(Protocol):
    """Runs a case here, with a fault (`module:function`) or without, whole or for a few steps.

    Raises:
        RunError: the run left no trace.
    """

    def __call__(self, case: Case, fault: str | None, steps: int | None = None, /) -> Trace:
        """Runs the case."""
        ...


@dataclass(frozen=True)
class Rebase:
    """A golden to write again, and why.

    Attributes:
        proposal: what `accept` writes.
        reason: for the audit.
        shown: lines for the user.
        proven: canaries that the planted runs have proven for the new golden, by the fault's id.
    """

    proposal: Proposal
    reason: str
    shown: Sequence[str]
    proven: Mapping[str, Proof] = field(default_factory=dict)


def conflicted(store: GoldenStore, lane: str) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """Case -> place -> (side, reason) of both acceptances, for each merged golden of a lane."""
    found: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for name in store.names(lane):
        for place in store.places(lane, name):
            path = store.path(lane, name, place) / HEAD
            sides = conflict_reasons(path, read_file(path))
            if sides is not None:
                found.setdefault(name, {})[place] = sides
    return found


def rebase_merge(
    store: GoldenStore,
    lane: str,
    case: Case,
    places: Mapping[str, Sequence[tuple[str, str]]],
    rerun: Rerun,
) -> Rebase:
    """Records the merged code in place of two acceptances of this environment.

    Args:
        store: the goldens.
        lane: of the golden.
        case: that both branches accepted.
        places: the case's merged goldens, from `conflicted`.
        rerun: runs the merged code.

    Returns:
        What to write, and what to show of it.

    Raises:
        RefusedError: the merged goldens are other environments'.
    """
    trace = rerun(case, None)
    environment = environment_of(trace.provenance)
    told = {place: goldens_of_sides(store, lane, case.name, place) for place in places}
    of_places = {
        place: {side: golden for side, golden in found.items() if isinstance(golden, Golden)}
        for place, found in told.items()
    }
    wanted = identity(environment)
    # What a side's head no longer tells may be of any environment.
    fit = [
        place
        for place, goldens in of_places.items()
        if wanted in {identity(g.environment) for g in goldens.values()} or not goldens
    ]
    if not fit:
        where = "; ".join(
            sorted({in_words(g.environment) for gs in of_places.values() for g in gs.values()})
        )
        raise RefusedError(
            f"{lane}/{case.name}: the merged golden is of {where}: run this there, not on "
            f"{in_words(environment)}"
        )
    place = fit[0]
    sides, goldens = places[place], of_places[place]
    shown = [f"{lane}/{case.name}: accepted on both sides"]
    shown += [f"  {side}: {reason}" for side, reason in sides]
    for side, golden in goldens.items():
        moved = changes(compare(golden.trace, trace, golden.tolerances))
        shown.append(f"  the merged code against {side}: {len(moved) or 'nothing'} moved")
        shown += [f"    {movement.describe()}" for movement in movements(moved)]
    for side, reason in told[place].items():
        if isinstance(reason, str):
            shown.append(f"  {side} cannot be compared with: {reason}")
    before = _tighter(list(goldens.values()))
    if before is None:
        shown.append("  neither side's tolerances are left: golden calibrate measures them again")
        proposal = Proposal(lane, trace, None, (), place=place)
    else:
        proposal = propose_after(before, trace, place)
    reason = MERGE_REASON + "; ".join(reason for _, reason in sides)
    return Rebase(proposal, reason, shown)


def rebase_environment(
    store: GoldenStore,
    root: Path,
    cases: Mapping[str, Case],
    faults: Sequence[Fault],
    runs: tuple[Path, Path],
    wanted: Sequence[str],
    rerun: Rerun,
    lane: str | None = None,
) -> list[Rebase]:
    """Moves goldens to a new environment, after every check of the module's docstring.

    Args:
        store: the goldens.
        root: the repository.
        cases: declared here.
        faults: declared here.
        runs: run folders of the old and of the new environment.
        wanted: cases; empty for all of the new run.
        rerun: runs a case here, which must be the new environment.
        lane: the runs' lane to move; None for the only one they have.

    Returns:
        What to write for each case, and what to show of it.

    Raises:
        RefusedError: the first check that does not hold, naming the case.
        RunError: a clean run failed here.
    """
    old = dict(_keyed(load_runs([runs[0]], root, cases, wanted)))
    rebased = []
    lane = lane_to_move(runs[1], lane)
    for key, trace in _keyed(load_runs([runs[1]], root, cases, wanted)):
        if key[0] != lane:
            continue
        name = key[1]
        subject = f"{lane}/{name}"
        if key not in old:
            raise RefusedError(f"{subject}: {runs[0]} has no run of it in the old environment")
        new = environment_of(trace.provenance)
        try:
            golden = store.nearest(lane, name, environment_of(old[key].provenance))
        except DamagedFileError as error:
            raise RefusedError(f"{subject}: {error}") from error
        own = store.place_of(lane, name, new)
        if own not in (None, golden.place):
            raise RefusedError(
                f"{subject}: {in_words(new)} has a golden of its own; `golden update` replaces it"
            )
        differences = _environment_changes(old[key], trace)
        if not differences:
            raise RefusedError(f"{subject}: both runs are of the same environment")
        _refuse_moved(
            subject, "the old environment", golden, old[key], 1.0, "the code has changed, too"
        )
        _refuse_moved(
            subject, "the new environment", golden, trace, GROWTH, "more than calibrated growth"
        )
        here = rerun(cases[name], None)
        strangers = _environment_changes(trace, here)
        if strangers:
            raise RefusedError(f"{subject}: run this in the new environment ({strangers[0]})")
        proven, notes = _refuse_survivors(subject, golden, trace, cases[name], faults, rerun)
        shown = [f"{subject}: moves to another environment", *(f"  {d}" for d in differences)]
        shown += [f"  {note}" for note in notes]
        reason = "environment: " + ", ".join(differences)
        rebased.append(Rebase(_moved(store, golden, trace), reason, shown, proven))
    return rebased


def lane_to_move(folder: Path, wanted: str | None) -> str:
    """Finds the lane of a run folder that is to be moved.

    Args:
        folder: what a check left.
        wanted: what the user named; None for the only one there is.

    Returns:
        Name of the lane.

    Raises:
        RefusedError: the folder has no trace of it, or has several lanes and none was named.
        DamagedFileError: the head of a trace cannot be read.
    """
    heads = sorted((folder / TRACES).glob("*/trace.json"))
    provenances = [decode_json(read_file(head), head).get("provenance", {}) for head in heads]
    found = sorted({str(environment_of(provenance).get("lane")) for provenance in provenances})
    if not found:
        raise RefusedError(f"{folder}: no traces; give a folder that `golden check` left")
    if wanted is not None and wanted not in found:
        raise RefusedError(f"{folder}: has no run of lane {wanted}, but of {', '.join(found)}")
    if wanted is None and len(found) > 1:
        raise RefusedError(f"{folder}: has runs of lanes {', '.join(found)}: choose with --lane")
    return wanted or found[0]


def _moved(store: GoldenStore, golden: Golden, trace: Trace) -> Proposal:
    """The golden moved to another environment: in its place, or in that environment's folder."""
    place = golden.place and store.free_place(
        golden.lane, golden.case, environment_of(trace.provenance)
    )
    return propose_after(golden, trace, place)


def _keyed(traces: Sequence[tuple[str, Trace]]) -> list[tuple[tuple[str, str], Trace]]:
    return [((lane, trace.case), trace) for lane, trace in traces]


def _refuse_moved(
    subject: str, where: str, golden: Golden, trace: Trace, factor: float, consequence: str
) -> None:
    wide = Tolerances(
        {
            name: {step: factor * tolerance for step, tolerance in steps.items()}
            for name, steps in golden.tolerances.classes.items()
        }
    )
    moved = changes(compare(golden.trace, trace, wide))
    if moved:
        raise RefusedError(f"{subject}: {where}: {moved[0].describe()}: {consequence}")


def _refuse_survivors(
    subject: str,
    before: Golden,
    trace: Trace,
    case: Case,
    faults: Sequence[Fault],
    rerun: Rerun,
) -> tuple[dict[str, Proof], list[str]]:
    """Plants the case's faults and holds each run to the moved golden.

    Returns:
        The canaries that were proven by it, and notes on faults that say nothing.

    Raises:
        RefusedError: a fault that the golden killed before survives.
    """
    lane = before.lane
    after = replace(before, trace=trace)
    proven, notes = {}, []
    for fault in faults:
        if lane not in fault.lanes or fault.shown_by(lane) != case.name or fault.equivalent:
            continue
        try:
            if fault.canary_steps is not None:  # most faults show in them, for a part of the time
                early = rerun(case, fault.plant, fault.canary_steps)
                catch = _catch(after, early, fault.canary_steps)
                proof = proof_of(catch, fault.canary_steps)
                if proof is not None and fit(fault, lane):
                    proven[fault.id] = proof
                if catch is not None:
                    continue
            planted = rerun(case, fault.plant)
        except RunError as error:
            notes.append(f"fault {fault.id} could not be planted: {str(error).splitlines()[0]}")
            continue
        if _catch(after, planted) is not None:
            continue
        if _catch(before, planted) is not None:
            raise RefusedError(f"{subject}: the new golden would be blind to fault {fault.id}")
        notes.append(f"fault {fault.id} was not caught before, either")
    return proven, notes


def _catch(golden: Golden, planted: Trace, steps: int | None = None) -> Catch | None:
    expected = golden.trace if steps is None else golden.trace.up_to(steps)
    return compare(expected, planted, golden.tolerances).caught


def _environment_changes(one: Trace, other: Trace) -> list[str]:
    before, after = (dict(t.provenance.get("environment", {})) for t in (one, other))
    return [
        f"{name} {before.get(name)} -> {after.get(name)}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def _tighter(goldens: Sequence[Golden]) -> Golden | None:
    """The side whose tolerances are wider than the other's by the smaller factor, the first of two.

    Whole, since tolerances of both sides mixed would follow from neither's noise.
    """

    def excess(golden: Golden) -> float:
        wider = (widened(other.tolerances, golden.tolerances) for other in goldens)
        return max((found.factor for found in wider if found is not None), default=1.0)

    return min(goldens, key=excess, default=None)
