"""A golden, and how its head (`golden.json`) holds it: fields, tolerances, digests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from validation.compare import Tolerances
from validation.files import SCHEMA, DamagedFileError, digest, encode_json
from validation.goldens.canaries import Canaries, CanaryList, basis
from validation.schema import Form, Number
from validation.trace.model import Trace
from validation.trace.storage import encode_trace


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A trace that was accepted.

    Attributes:
        lane: where it was recorded.
        trace: what is expected; its provenance says how it was made.
        case_digest: of the case's declaration.
        accepted: `time`, `author`, `reason`.
        tolerances: measured by calibration; empty before it.
        calibration: reruns they came from, their noise, held-out ratios, types of machines.
        detectable_effect: metric -> smallest relative change that fails, at its first step.
        place: folder inside the case's; empty for the first environment.
        canaries: the faults that it catches, and what they were proven against.
    """

    lane: str
    trace: Trace
    case_digest: str
    accepted: Mapping[str, str]
    tolerances: Tolerances = field(default_factory=Tolerances)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    detectable_effect: Mapping[str, float] = field(default_factory=dict)
    place: str = ""
    canaries: Canaries = field(default_factory=Canaries)

    @property
    def case(self) -> str:
        """Name of the case."""
        return self.trace.case

    @property
    def environment(self) -> Mapping[str, Any]:
        """What it was recorded in."""
        return environment_of(self.trace.provenance)


class _Series(Form, frozen=True):
    """The tolerances of a class: a value for each step."""

    steps: list[int]
    values: list[Number]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.values):
            raise ValueError(f"{len(self.steps)} steps and {len(self.values)} values")


class Head(Form, frozen=True):
    """What `golden.json` holds besides its digest."""

    schema: int
    case: str
    lane: str
    case_digest: str
    accepted: dict[str, str]
    provenance: dict[str, Any]
    calibration: dict[str, Any]
    detectable_effect: dict[str, Number]
    tolerances: dict[str, _Series]
    files: dict[str, str]
    canaries: CanaryList | None = None


def head_of(golden: Golden, files: Mapping[str, str]) -> dict[str, Any]:
    """A head without canaries and digest."""
    return {
        "schema": SCHEMA,
        "case": golden.case,
        "lane": golden.lane,
        "case_digest": golden.case_digest,
        "accepted": dict(golden.accepted),
        "provenance": dict(golden.trace.provenance),
        "calibration": dict(golden.calibration),
        "detectable_effect": dict(golden.detectable_effect),
        "tolerances": _encode_tolerances(golden.tolerances),
        "files": dict(files),
    }


def content_of(golden: Golden) -> bytes:
    """What tells two goldens apart, but for their canaries; NaN is equal to itself here."""
    return encode_json(head_of(golden, _files_of(golden)))


def _files_of(golden: Golden) -> dict[str, str]:
    return {name: digest(content) for name, content in encode_trace(golden.trace).items()}


def basis_of(golden: Golden) -> str:
    """Digest of a golden's trace and tolerances: what a proof of a canary holds for."""
    return basis(_files_of(golden), _encode_tolerances(golden.tolerances))


def tolerances_digest(tolerances: Tolerances) -> str:
    """Digest of tolerances, the same before they are stored and after."""
    return digest(
        encode_json(
            {
                name: {str(step): float(value) for step, value in steps.items()}
                for name, steps in tolerances.classes.items()
            }
        )
    )


def environment_of(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """The environment that a trace's provenance tells of."""
    found = provenance.get("environment")
    return found if isinstance(found, Mapping) else {}


def verified_head(head: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Verifies a head against the digest in it.

    Args:
        head: content of a `golden.json`.
        path: its file, for messages.

    Returns:
        The head without its digest.

    Raises:
        DamagedFileError: it is not; the message begins with `path`.
    """
    rest = {name: value for name, value in head.items() if name != "digest"}
    if head.get("digest") != digest(encode_json(rest)):
        raise DamagedFileError(f"{path}: damaged: its content is not what was recorded")
    return rest


def _encode_tolerances(tolerances: Tolerances) -> dict[str, Any]:
    return {
        name: {"steps": sorted(steps), "values": [steps[s] for s in sorted(steps)]}
        for name, steps in tolerances.classes.items()
    }


def decode_tolerances(classes: Mapping[str, _Series]) -> Tolerances:
    """The tolerances that a head's form holds."""
    return Tolerances(
        {
            name: dict(zip(series.steps, map(float, series.values), strict=True))
            for name, series in classes.items()
        }
    )
