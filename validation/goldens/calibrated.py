"""What a calibration leaves on file: `goldens/audit/` says who measured which tolerances, and why.

The file names the tolerances by digest. Tolerances that were edited by hand, or taken from another
golden, are on no file, so that the base's judge can tell them from measured ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from validation.compare import Tolerances
from validation.files import (
    SCHEMA,
    DamagedFileError,
    decode_json,
    digest,
    encode_json,
    read_file,
    write_atomically,
)
from validation.goldens.audit import author
from validation.goldens.environments import in_words
from validation.goldens.store import Golden, GoldenStore
from validation.running.source import tree_digest


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
        after: with the measured ones; `calibration` holds `time` and `runs`.
        reason: why it was calibrated; may be empty.

    Returns:
        Path of the file.
    """
    root = store.folder.parent
    wider = widened(before.tolerances, after.tolerances)
    content = encode_json(
        {
            "schema": SCHEMA,
            "time": after.calibration["time"],
            "author": author(root),
            "reason": reason,
            "tree_digest": tree_digest(root),
            "calibrated": [
                {
                    "lane": after.lane,
                    "case": after.case,
                    "environment": in_words(after.environment),
                    "tolerances": tolerances_digest(after.tolerances),
                    "runs": after.calibration["runs"],
                    "widened": 1.0 if wider is None else wider.factor,
                }
            ],
        }
    )
    stamp = after.calibration["time"].replace(":", "").replace("-", "")[:15]
    path = store.folder / "audit" / f"{stamp}-{digest(content)[:8]}.json"
    write_atomically(path, content)
    return path


def calibration_on_file(goldens: Path, golden: Golden) -> Mapping[str, Any] | None:
    """Finds the audit file of the calibration that measured a golden's tolerances.

    Args:
        goldens: the folder of the store.
        golden: of that store.

    Returns:
        The file's content, or None where there is no such file.
    """
    wanted = {
        "lane": golden.lane,
        "case": golden.case,
        "environment": in_words(golden.environment),
        "tolerances": tolerances_digest(golden.tolerances),
    }
    calibration: Any = golden.calibration
    recorded = calibration.get("time", "") if isinstance(calibration, Mapping) else ""
    for path in sorted((goldens / "audit").glob("*.json")):
        try:
            audit = decode_json(read_file(path), path)
        except DamagedFileError:
            continue
        entries = audit.get("calibrated")
        if (
            isinstance(entries, list)
            and audit.get("time") == recorded
            and str(audit.get("author") or "").strip()
            and any(isinstance(e, dict) and wanted.items() <= e.items() for e in entries)
        ):
            return audit
    return None


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
