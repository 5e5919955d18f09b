"""What `golden calibrate`, `update` and `rebase` do last: prove canaries of what they wrote."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from validation.cases import Case, discover_faults
from validation.cli.progress import TerminalProgress
from validation.goldens import GoldenStore
from validation.goldens.canaries import in_force
from validation.goldens.layout import HEAD
from validation.goldens.proposal import Proposal
from validation.power.proof import ENOUGH, ENOUGH_AT_FIRST, Site, fit_faults, prove_here
from validation.run_folder import RunFolder


@dataclass(frozen=True)
class Unproven:
    """A golden that was written, and what its predecessor listed."""

    lane: str
    case: Case
    place: str
    listed: Collection[str] = ()
    enough: int = ENOUGH


def prove(root: Path, goldens: Iterable[Unproven], progress: TerminalProgress) -> None:
    """Proves canaries of goldens and prints what was found."""
    faults = list(discover_faults(root).values())
    wanted = [g for g in goldens if fit_faults(faults, g.lane, g.case.name)]
    if not wanted:
        return
    site = Site(
        root=root,
        store=GoldenStore(root / "goldens"),
        faults=faults,
        log=RunFolder.create(root, wanted[0].lane).log,
        tell=progress.message,
    )
    for g in wanted:
        print(prove_here(site, g.lane, g.case, g.place, g.listed, g.enough))


def prove_accepted(
    root: Path, proposals: Iterable[Proposal], cases: dict[str, Case], progress: TerminalProgress
) -> None:
    """Proves again what replaced goldens listed, and a few canaries of first goldens."""
    store, unproven = GoldenStore(root / "goldens"), []
    for proposal in proposals:
        before = proposal.before.canaries if proposal.before else None
        listed = list(before.proofs) if before else []
        case = cases[proposal.trace.case]
        path = store.path(proposal.lane, case.name, proposal.place) / HEAD
        if in_force(store.head(proposal.lane, case.name, proposal.place), path):
            continue  # neither trace nor tolerances have moved
        unproven.append(Unproven(proposal.lane, case, proposal.place, listed, ENOUGH_AT_FIRST))
    prove(root, unproven, progress)
