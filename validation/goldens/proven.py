"""Draws the bug that a check plants to prove itself, from those that goldens are known to catch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from validation.cases import Case, Fault
from validation.files import DamagedFileError
from validation.goldens.canaries import CERTAIN, Proof, in_force
from validation.goldens.golden import environment_of
from validation.goldens.layout import HEAD
from validation.goldens.store import GoldenStore


@dataclass(frozen=True)
class Candidate:
    """A bug that a golden is proven to catch.

    Attributes:
        fault: the bug.
        case: where it is planted.
        place: of the golden, among the case's.
        proof: how it was caught.
    """

    fault: Fault
    case: Case
    place: str
    proof: Proof


def fit(fault: Fault, lane: str) -> bool:
    """Whether a check of a lane may plant this bug, once it is proven."""
    able = fault.canary and fault.canary_steps is not None and fault.equivalent is None
    return able and lane in fault.lanes


def candidates(
    store: GoldenStore,
    lane: str,
    cases: Iterable[Case],
    faults: Sequence[Fault],
    environment: Callable[[str], Mapping[str, Any]],
    base: GoldenStore | None = None,
) -> list[Candidate]:
    """Lists every bug of a lane that is proven with a margin of `CERTAIN`, in a fixed order.

    Args:
        store: the goldens.
        lane: of the check.
        cases: that this machine can run.
        faults: declared; a listed one that is not among them is left out.
        environment: name of a case -> where it runs; asked where a case has several goldens.
        base: the goldens of the base, whose lists count then. Of these, the ones of goldens whose
            trace this tree has not replaced come first; the others count where there are none.

    Returns:
        The bugs, each with the golden that catches it.
    """
    known = {fault.id: fault for fault in faults if fit(fault, lane)}
    found: list[tuple[bool, Candidate]] = []
    for case in sorted(cases, key=lambda c: c.name):
        try:
            place, same, proofs = _proofs(store, lane, case, environment, base)
        except DamagedFileError:
            continue  # a case of the check is INVALID for it; another one has no golden to compare
        found += [
            (same, Candidate(known[name], case, place, proof))
            for name, proof in sorted(proofs.items())
            if name in known and proof.margin >= CERTAIN
        ]
    unchanged = [candidate for same, candidate in found if same]
    return unchanged or [candidate for _, candidate in found]


def _proofs(
    store: GoldenStore,
    lane: str,
    case: Case,
    environment: Callable[[str], Mapping[str, Any]],
    base: GoldenStore | None,
) -> tuple[str, bool, Mapping[str, Proof]]:
    """Place of a case's golden, whether its trace is the judging one's, and what that one catches.

    Raises:
        DamagedFileError: there is no golden, here or at the base, or it is damaged.
    """
    place = _nearest(store, lane, case.name, environment)
    head = ours = store.head(lane, case.name, place)
    path = store.path(lane, case.name, place) / HEAD
    if ours["case_digest"] != case.digest:
        return place, False, {}
    if base is not None:
        its = _nearest(base, lane, case.name, lambda _: environment_of(ours["provenance"]))
        head = base.head(lane, case.name, its)
        path = base.path(lane, case.name, its) / HEAD
    return place, ours["files"] == head["files"], in_force(head, path)


def choose_canary(found: Sequence[Candidate], source: str) -> Candidate | None:
    """The bug that this source tree's check plants: the same one at every rerun."""
    return found[int(source[:8], 16) % len(found)] if found else None


def why_none(faults: Iterable[Fault], lane: str) -> str:
    """Why a lane has no candidate, and what to do."""
    if any(fit(fault, lane) for fault in faults):
        return (
            f"no fault of lane {lane} is proven to be caught by a golden that this machine can "
            "check: run `golden calibrate` or `golden faults`"
        )
    return f"no fault of lane {lane} is declared that a check may plant"


def _nearest(
    store: GoldenStore, lane: str, case: str, environment: Callable[[str], Mapping[str, Any]]
) -> str:
    places = store.places(lane, case)
    return places[0] if len(places) == 1 else store.nearest_place(lane, case, environment(case))
