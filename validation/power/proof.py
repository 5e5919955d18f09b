"""Proves canaries: plants faults that a check may draw, and lists those that the golden catches.

What is proven here is what a check does: the fault planted for its few steps, in the plain
settings, compared with the golden's same steps at its tolerances. A clean run must pass first;
where it does not, a planted one that differs proves nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path

from validation.cases import Case, Fault
from validation.compare import Catch, Comparison, compare
from validation.config import declaration_of, lane_of
from validation.files import DamagedFileError
from validation.goldens.canaries import CERTAIN, Canaries, Proof
from validation.goldens.environments import identity, in_words
from validation.goldens.golden import Golden, basis_of, environment_of
from validation.goldens.proven import fit
from validation.goldens.store import GoldenStore
from validation.power.matrix import Matrix
from validation.running.environment import gpu_count
from validation.running.execution import RunError, RunOptions, run_case
from validation.running.machine import unfit

# Faults that are planted to prove a golden's canaries, at most: each costs a run of a few steps.
PLANTED = 8
# Of a calibrated golden so many are proven; of a new one, which calibration will change, fewer.
ENOUGH = 4
ENOUGH_AT_FIRST = 2


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where canaries are proven.

    Attributes:
        root: the repository.
        store: its goldens.
        faults: every declared one.
        log: receives what the runs print.
        tell: told what happens.
    """

    root: Path
    store: GoldenStore
    faults: Sequence[Fault]
    log: Path
    tell: Callable[[str], None]


@dataclass(frozen=True)
class Planted:
    """What a golden's planted runs have shown.

    Attributes:
        proven: by the fault's id.
        tried: ids of faults that were planted; one of these that is not proven is no canary.
    """

    proven: Mapping[str, Proof]
    tried: Collection[str]


def proof_of(catch: Catch | None, steps: int) -> Proof | None:
    """The proof that a run of so many steps gives, if the fault was caught with certainty."""
    if catch is None or catch.margin < CERTAIN:
        return None
    return Proof(steps, catch.margin, catch.place)


def fit_faults(faults: Iterable[Fault], lane: str, case: str) -> list[Fault]:
    """The faults that a check may plant in a case, one of each category in turn."""
    by_category: defaultdict[str, list[Fault]] = defaultdict(list)
    for fault in sorted(faults, key=lambda f: (f.category, f.id)):
        if fit(fault, lane) and fault.shown_by(lane) == case:
            by_category[fault.category].append(fault)
    rounds = chain.from_iterable(zip_longest(*by_category.values()))
    return [fault for fault in rounds if fault is not None]


def prove_here(
    site: Site,
    lane: str,
    case: Case,
    place: str,
    listed: Collection[str] = (),
    enough: int = ENOUGH,
) -> str:
    """Plants faults until a golden has enough proven canaries, and lists them with it.

    Args:
        site: where.
        lane: of the golden.
        case: of the golden.
        place: of the golden, among the case's.
        listed: ids that a former golden listed: they are planted first, up to `PLANTED` of them.
        enough: how many others are proven at most.

    Returns:
        A line for the user, empty where no fault of the case could be a canary.
    """
    subject = "/".join(filter(None, (lane, case.name, place)))
    known = fit_faults(site.faults, lane, case.name)
    first = [fault for fault in known if fault.id in listed]
    chosen = [*first, *(fault for fault in known if fault not in first)][:PLANTED]
    if not chosen:
        return ""
    try:
        golden = site.store.load(lane, case.name, place)
        reason = _unable(site, lane, case) or _unlike(site, golden, case, chosen)
    except (DamagedFileError, RunError) as error:
        reason = str(error).splitlines()[0]
    if reason:
        return (
            f"no canary is proven for {subject}: {reason}; run `golden calibrate {case.name}` or "
            "`golden faults` where it can be"
        )
    proven: dict[str, Proof] = {}
    tried = set()
    for fault in chosen:
        if fault not in first and len(proven) >= enough:
            break
        tried.add(fault.id)
        steps = fault.canary_steps or 0
        try:
            catch = _compared(site, golden, case, steps, fault.plant).caught
        except RunError as error:
            site.tell(f"{subject}: {fault.id} could not be run: {str(error).splitlines()[0]}")
            continue
        proof = proof_of(catch, steps)
        if proof is None:
            found = "not caught" if catch is None else f"caught with a margin of {catch.margin:.3g}"
            site.tell(f"{subject}: {fault.id}: {found}: no canary")
        else:
            site.tell(f"{subject}: {fault.id}: caught at {proof.place}, margin {proof.margin:.3g}")
            proven[fault.id] = proof
    left = [name for name in listed if name not in tried]
    line = record(site.store, site.faults, golden, Planted(proven, tried))
    return f"{line}; {len(left)} more were listed: run `golden faults`" if left else line


def record(store: GoldenStore, faults: Iterable[Fault], golden: Golden, planted: Planted) -> str:
    """Lists what was proven with a golden, beside what it lists already.

    Args:
        store: the goldens.
        faults: every declared one; what is listed and no longer declared goes.
        golden: as it was when the faults were planted; one that has changed since is left alone.
        planted: what was found.

    Returns:
        A line that says what was listed.
    """
    subject = "/".join(filter(None, (golden.lane, golden.case, golden.place)))
    against, declared = basis_of(golden), {fault.id for fault in faults}
    with store.lock():
        now = store.load(golden.lane, golden.case, golden.place)
        if basis_of(now) != against:
            return f"no canary is listed for {subject}: the golden has changed since"
        kept = now.canaries.proofs if now.canaries.against == against else {}
        proofs = {n: p for n, p in kept.items() if n in declared and n not in planted.tried}
        proofs |= planted.proven
        canaries = Canaries(against, dict(sorted(proofs.items()))) if proofs else Canaries()
        if canaries != now.canaries:
            store.save(replace(now, canaries=canaries))
    if not proofs:
        none = f"of {len(planted.tried)} planted faults none is caught with a margin of {CERTAIN:g}"
        return f"no canary is proven for {subject}: {none}"
    smallest = min(proof.margin for proof in proofs.values())
    return (
        f"{subject}: {len(planted.proven)} of {len(planted.tried)} planted faults are proven "
        f"canaries, {len(proofs)} listed, smallest margin {smallest:.3g}"
    )


def record_matrix(
    store: GoldenStore, faults: Sequence[Fault], goldens: Mapping[str, Golden], matrix: Matrix
) -> list[str]:
    """Lists, with each golden that judged a kill matrix, the canaries which that has proven.

    Only the runs that a check would make count: a fault's own case, stopped after its few steps;
    and only of cases whose clean run has passed.

    Args:
        store: the goldens.
        faults: every declared one.
        goldens: by case, as they judged.
        matrix: not of whole runs.

    Returns:
        A line for each golden.
    """
    passed = {entry.id for entry in matrix.passes if entry.passed}
    lines = []
    for name, golden in goldens.items():
        if f"unchanged/{name}" not in passed:
            continue
        proven: dict[str, Proof] = {}
        tried = set()
        for kill in matrix.kills:
            steps = kill.fault.canary_steps
            if steps is None or not fit(kill.fault, golden.lane):
                continue
            seen = kill.sightings[0] if kill.sightings else None
            if kill.fault.shown_by(golden.lane) != name or (seen and seen.margin is None):
                continue  # another case's, or of an older matrix, which knew no margins
            tried.add(kill.fault.id)
            if seen and seen.margin is not None and (seen.case, seen.steps) == (name, steps):
                proof = proof_of(Catch(seen.first, seen.margin), steps)
                proven |= {} if proof is None else {kill.fault.id: proof}
        if tried:
            lines.append(record(store, faults, golden, Planted(proven, tried)))
    return lines


def _unable(site: Site, lane: str, case: Case) -> str | None:
    """Why this machine cannot run a case of a lane; None if it can."""
    gpus = gpu_count()
    missing = case.needs.missing(site.root, gpus, lane_of(site.root, lane))
    return unfit(declaration_of(site.root).lanes[lane], gpus) or (missing and f"it {missing}")


def _unlike(site: Site, golden: Golden, case: Case, faults: Sequence[Fault]) -> str | None:
    """Why a clean run here is not the golden's; None if it passes.

    Raises:
        RunError: it left no trace.
    """
    if golden.case_digest != case.digest:
        return "the golden is of another declaration of the case"
    steps = max(fault.canary_steps or 0 for fault in faults)
    site.tell(f"{golden.lane}/{golden.case}: a clean run before faults are planted")
    comparison = _compared(site, golden, case, steps)
    found = environment_of(comparison.actual.provenance)
    if identity(found) != identity(golden.environment):
        return f"the golden is of {in_words(golden.environment)}, this machine {in_words(found)}"
    if comparison.divergences or not comparison.compared:
        return "a clean run here does not pass"
    return None


def _compared(
    site: Site, golden: Golden, case: Case, steps: int, plant: str | None = None
) -> Comparison:
    settings = {"stop_after": steps}
    options = RunOptions(lane=golden.lane, settings=settings, fault=plant)
    trace = run_case(case, options, site.root, site.log)
    return compare(golden.trace.up_to(steps), trace, golden.tolerances)
