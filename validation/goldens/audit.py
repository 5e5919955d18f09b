"""What an acceptance leaves on file in `goldens/audit/`: who, why, and a summary of what moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from validation.files import SCHEMA
from validation.goldens.audit_log import ACCEPTED, AuditLog
from validation.goldens.declared import Expectation
from validation.goldens.environments import in_words
from validation.goldens.golden import environment_of, tolerances_digest
from validation.goldens.proposal import Proposal
from validation.goldens.store import GoldenStore
from validation.running.source import RepositoryError, git, tree_digest
from validation.trace import RecordKind

SHOWN = 8
"""How many movements of a golden are listed one by one."""


def write_audit(
    store: GoldenStore,
    root: Path,
    accepted: Mapping[str, str],
    proposals: Sequence[Proposal],
    expected: Sequence[Expectation],
) -> Path:
    """Writes one audit file, named so that two branches' never collide."""
    log = AuditLog(store.folder)
    return log.write(
        {
            "schema": SCHEMA,
            **accepted,
            "tree_digest": tree_digest(root),
            "expected": [str(expectation) for expectation in expected],
            ACCEPTED: [_summary(proposal, log) for proposal in proposals],
        }
    )


def _summary(proposal: Proposal, log: AuditLog) -> dict[str, Any]:
    """What an audit file says of a golden: curves first, then the largest; git has every record."""
    found = sorted(
        proposal.movements,
        key=lambda m: (m.changes[0].first.kind is not RecordKind.CURVE, -m.largest),
    )
    moved = [movement.describe() for movement in found[:SHOWN]]
    if rest := found[SHOWN:]:
        names = sum(len(movement.changes) for movement in rest)
        records = sum(movement.records for movement in rest)
        moved.append(f"and {len(rest)} more: {records} record(s) of {names} names")
    return {
        "lane": proposal.lane,
        "case": proposal.trace.case,
        "environment": in_words(environment_of(proposal.trace.provenance)),
        "new": proposal.before is None,
        "compared": proposal.compared,
        "identical": proposal.identical,
        "moved": moved,
        # Of the former golden, which this one keeps, also where it moves to another environment.
        "tolerances": tolerances_digest(proposal.before.tolerances) if proposal.before else None,
        **log.former(proposal.lane, proposal.trace.case),
    }


def author(root: Path) -> str:
    """Who git says is working here."""
    try:
        name = git(root, "config", "user.name").strip()
    except RepositoryError:
        name = ""
    try:
        email = git(root, "config", "user.email").strip()
    except RepositoryError:
        email = ""
    return f"{name} <{email}>".strip() if name or email else "unknown"
