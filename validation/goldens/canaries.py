"""The faults that a golden is known to catch: what a check may plant to prove itself.

A proof holds for the trace and the tolerances that it was made with. Their digest is kept beside
the list, so that a golden whose trace or tolerances have changed since has no proven canary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from validation.files import digest, encode_json
from validation.schema import Count, Form, Number, parse

KEY = "canaries"
"""Name of the list in a golden's head."""

CERTAIN = 10.0
"""The least margin of a canary. Kernels and processors take at most one tolerance of it away, so a
fault that was caught by ten is caught by every run that passes without it."""


@dataclass(frozen=True)
class Proof:
    """That a golden catches a fault.

    Attributes:
        steps: training steps that were run with the fault planted.
        margin: error over tolerance of the worst record; inf where a fact differed.
        place: where the fault first showed.
    """

    steps: int
    margin: float
    place: str


class _ProofForm(Form, frozen=True):
    steps: Count
    margin: Number
    place: str


class CanaryList(Form, frozen=True):
    """What a golden's head holds of its canaries."""

    proven_against: str
    faults: dict[str, _ProofForm]


@dataclass(frozen=True)
class Canaries:
    """The faults that a golden catches.

    Attributes:
        against: digest of the trace and the tolerances that they were proven against.
        proofs: by the fault's id.
    """

    against: str = ""
    proofs: Mapping[str, Proof] = field(default_factory=dict)

    @classmethod
    def of(cls, told: CanaryList | None) -> Canaries:
        """The canaries that a head lists; none in a head without the list."""
        if told is None:
            return cls()
        proofs = {n: Proof(p.steps, float(p.margin), p.place) for n, p in told.faults.items()}
        return cls(told.proven_against, proofs)

    def to_json(self) -> dict[str, Any]:
        """What the golden's head holds."""
        faults = {
            name: {"steps": p.steps, "margin": p.margin, "place": p.place}
            for name, p in self.proofs.items()
        }
        return {"proven_against": self.against, "faults": faults}


def basis(files: Mapping[str, str], tolerances: Mapping[str, Any]) -> str:
    """Computes a digest of what a proof holds for.

    Args:
        files: digests of the trace's files.
        tolerances: as a golden's head holds them.

    Returns:
        The digest.
    """
    return digest(encode_json({"files": dict(files), "tolerances": dict(tolerances)}))


def listed(head: Mapping[str, Any], path: Path) -> Canaries:
    """Reads the canaries that a head lists, stale ones included.

    Args:
        head: content of a `golden.json`.
        path: its file, for messages.

    Returns:
        The canaries; none in a head without the list.

    Raises:
        DamagedFileError: the list is malformed; the message begins with `path`.
    """
    document = head.get(KEY)
    return Canaries.of(None if document is None else parse(document, CanaryList, path))


def stale(head: Mapping[str, Any], path: Path) -> bool:
    """Whether the trace or the tolerances have changed since the head's canaries were proven."""
    found = listed(head, path)
    return bool(found.proofs) and found.against != basis(head["files"], head["tolerances"])


def in_force(head: Mapping[str, Any], path: Path) -> Mapping[str, Proof]:
    """The proofs that hold for the trace and the tolerances of a head."""
    return {} if stale(head, path) else listed(head, path).proofs
