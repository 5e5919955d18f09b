"""Accepts a measurement: `goldens/<lane>/coverage.json`, and who did it and why in the audit."""

from __future__ import annotations

import contextlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from validation.coverage.document import Measured, read_measured
from validation.coverage.fall import accepted_file
from validation.files import SCHEMA, DamagedFileError, digest, encode_json, write_atomically
from validation.goldens.acceptance import RefusedError
from validation.goldens.audit import author
from validation.goldens.store import GoldenStore
from validation.running.source import tree_digest


def refuse_in_part(measured_names: int, skipped: dict[str, str]) -> None:
    """Refuses what is not the whole lane.

    Args:
        measured_names: how many cases the user has named.
        skipped: case -> why it cannot run here.

    Raises:
        RefusedError: it is not.
    """
    if measured_names:
        raise RefusedError("--accept: of every case of the lane only; name no case")
    if skipped:
        name, reason = next(iter(skipped.items()))
        raise RefusedError(
            f"--accept: {len(skipped)} case(s) cannot run here, whose lines would be missing: "
            f"{name} {reason}"
        )


def accept_measured(root: Path, measured: Measured, reason: str) -> Path:
    """Stores a measurement of a whole lane, and an audit entry.

    Args:
        root: the repository.
        measured: of the tree as it is.
        reason: why the figure is what it is.

    Returns:
        Where the audit entry is.
    """
    path = accepted_file(root, measured.lane)
    store = GoldenStore(root / "goldens")
    with store.lock():
        before: dict[str, Any] | None = None
        with contextlib.suppress(DamagedFileError):  # what it said is not known, and is replaced
            before = read_measured(path).lines.to_json() if path.exists() else None
        time = datetime.now(timezone.utc).isoformat(timespec="seconds")
        entry = {
            "schema": SCHEMA,
            "time": time,
            "author": author(root),
            "reason": reason,
            "tree_digest": tree_digest(root),
            "coverage": [
                {"lane": measured.lane, "before": before, "after": measured.lines.to_json()}
            ],
        }
        content = encode_json(entry)
        stamp = time.replace(":", "").replace("-", "")[:15]
        audit = store.folder / "audit" / f"{stamp}-{digest(content)[:8]}.json"
        write_atomically(audit, content)
        write_atomically(path, encode_json(measured.document()))
    return audit
