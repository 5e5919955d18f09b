"""What a calibration leaves on file: `goldens/audit/` says who measured which tolerances, and why.

The file names the tolerances, all that was stored with them, and each rerun's trace and noise by
digest. What was edited by hand, or taken from another golden, is on no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from validation.compare import Tolerances
from validation.files import SCHEMA, digest, encode_json
from validation.goldens.audit import author
from validation.goldens.audit_log import ACCEPTED, CALIBRATED, AuditLog, Entry
from validation.goldens.environments import in_words
from validation.goldens.golden import Golden, tolerances_digest
from validation.goldens.store import GoldenStore
from validation.running.source import tree_digest

RERUNS = "reruns"
"""Key of the reruns' lines in a golden's calibration, and of their digests in the audit."""

GRAINS = "grains"
"""Key of the grains in a golden's calibration."""


@dataclass(frozen=True)
class Widened:
    """How far tolerances are wider than others.

    Attributes:
        classes: how many classes of records are wider, at any step.
        of: how many classes there are.
        name: the class that is wider by the largest factor.
        step: where that is.
        before: its tolerance there.
        after: the wider one.
    """

    classes: int
    of: int
    name: str
    step: int
    before: float
    after: float

    @property
    def factor(self) -> float:
        """The largest factor; inf where nothing was allowed before."""
        return self.after / self.before if self.before else math.inf

    def describe(self) -> str:
        """One line."""
        wider = f"{self.before:.3g} -> {self.after:.3g}"
        how = f"{self.factor:.3g} times, {wider}" if self.before else f"{wider}, it had none"
        return (
            f"tolerances of {self.classes} of {self.of} classes are wider; most: {self.name} at "
            f"step {self.step} ({how})"
        )


def widened(before: Tolerances, after: Tolerances) -> Widened | None:
    """Where tolerances are wider than former ones, by class and step; None where they never are."""
    wider: dict[str, tuple[float, int, float, float]] = {}
    for name, steps in after.classes.items():
        for step in sorted({*steps, *before.classes.get(name, {})}):
            old, new = before.of(name, step), after.of(name, step)
            if not new <= old:  # a NaN is no tolerance that anybody measured
                factor = new / old if old and not math.isnan(new) else math.inf
                if name not in wider or factor > wider[name][0]:
                    wider[name] = (factor, step, old, new)
    if not wider:
        return None
    name = max(wider, key=lambda n: (wider[n][0], wider[n][3]))
    _, step, old, new = wider[name]
    return Widened(len(wider), len(after.classes), name, step, old, new)


def write_calibration(store: GoldenStore, before: Golden, after: Golden, reason: str) -> Path:
    """Writes the audit file of a calibration; call it before the golden is saved.

    Args:
        store: of the golden.
        before: the golden with its former tolerances.
        after: with the measured ones; `calibration` holds `time`, `runs` and the reruns.
        reason: why it was calibrated; may be empty.

    Returns:
        Path of the file.
    """
    wider = widened(before.tolerances, after.tolerances)
    entry = {
        "widened": 1.0 if wider is None else wider.factor,
        "calibration": calibration_digest(after),
        RERUNS: rerun_digests(after),
    }
    return _write(store, after, after.calibration["time"], reason, entry)


def write_adoption(store: GoldenStore, golden: Golden, reason: str) -> Path:
    """Puts a calibration from before there were audit files on file, as it is.

    Args:
        store: of the golden.
        golden: whose tolerances are on no file.
        reason: why they may stay.

    Returns:
        Path of the file.
    """
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    entry = {"adopted": True, "measured": golden.calibration.get("time", "")}
    return _write(store, golden, time, reason, {**entry, "calibration": calibration_digest(golden)})


def _write(
    store: GoldenStore, golden: Golden, time: str, reason: str, entry: Mapping[str, Any]
) -> Path:
    root, log = store.folder.parent, AuditLog(store.folder)
    return log.write(
        {
            "schema": SCHEMA,
            "time": time,
            "author": author(root),
            "reason": reason,
            "tree_digest": tree_digest(root),
            CALIBRATED: [
                {
                    "lane": golden.lane,
                    "case": golden.case,
                    "environment": in_words(golden.environment),
                    "tolerances": tolerances_digest(golden.tolerances),
                    "runs": golden.calibration["runs"],
                    **entry,
                    **log.former(golden.lane, golden.case),
                }
            ],
        }
    )


def calibration_on_file(log: AuditLog, golden: Golden) -> Entry | None:
    """Finds the audit entry of the calibration that measured a golden's tolerances.

    Args:
        log: of the golden's store.
        golden: its tolerances, and what is stored with them.

    Returns:
        The entry, or None where no intact file has one.
    """
    entries = list(log.of(golden.lane, golden.case))
    wanted, here = tolerances_digest(golden.tolerances), in_words(golden.environment)
    # A golden that moved to another environment kept what was measured in its former one.
    moved_here = any(
        e.kind == ACCEPTED
        and e.intact
        and (e.fields.get("environment"), e.fields.get("tolerances")) == (here, wanted)
        for e in entries
    )
    return next(
        (
            e
            for e in entries
            if e.kind == CALIBRATED
            and e.intact
            and e.author
            and e.fields.get("tolerances") == wanted
            and (e.fields.get("environment") == here or moved_here)
            and e.fields.get("measured", e.time) == golden.calibration.get("time", "")
            and _same_reruns(e, golden)
        ),
        None,
    )


def _same_reruns(entry: Entry, golden: Golden) -> bool:
    """Whether an entry names what is stored with tolerances; older ones name nothing of it."""
    if RERUNS not in golden.calibration and "calibration" not in entry.fields:
        return True
    return entry.fields.get("calibration") == calibration_digest(golden) and entry.fields.get(
        RERUNS, []
    ) == rerun_digests(golden)


def calibration_digest(golden: Golden) -> str:
    """Digest of all that a calibration has stored with a golden beside its tolerances."""
    return digest(encode_json(golden.calibration))


def rerun_digests(golden: Golden) -> Sequence[Mapping[str, Any]]:
    """Name, digest of the trace and digest of the noise of each rerun that is stored."""
    stored = golden.calibration.get(RERUNS, ())
    return [
        {
            "name": rerun.get("name"),
            "trace": rerun.get("trace"),
            "noise": digest(encode_json(rerun.get("noise"))),
        }
        for rerun in stored
        if isinstance(rerun, Mapping)
    ]
