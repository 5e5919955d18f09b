"""Reads `verdict.json` of a run folder back into the check that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from validation.compare import Divergence
from validation.files import DamagedFileError, decode_json, read_file, safe_name, to_float
from validation.gate.verdict import Canary, CaseResult, CheckResult, Verdict
from validation.run_folder import VERDICT_FILE


def read_verdict(run_dir: Path) -> CheckResult:
    """Reads the check that `verdict.json` of a run folder holds.

    Args:
        run_dir: the run folder.

    Returns:
        The check.

    Raises:
        DamagedFileError: it is missing, or not a verdict; its path comes first.
    """
    path = run_dir / VERDICT_FILE
    document = decode_json(read_file(path), path)
    try:
        canary = document["canary"]
        return CheckResult(
            verdict=Verdict(document["verdict"]),
            lane=str(document["lane"]),
            seconds=to_float(document["seconds"], path),
            environment=dict(document["environment"]),
            canary=None if canary is None else Canary(str(canary["fault"]), bool(canary["caught"])),
            cases=[_read_case(case, path) for case in document["cases"]],
            message=str(document.get("message") or ""),
            calibrated_here=_known_flag(document.get("calibrated_here")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path}: not a verdict: {error!r}") from error


def _read_case(case: Mapping[str, Any], path: Path) -> CaseResult:
    if not safe_name(str(case["case"])):
        raise ValueError(f"{case['case']!r} is no name of a case")
    ratio = case.get("largest_ratio")
    return CaseResult(
        case=str(case["case"]),
        verdict=Verdict(case["verdict"]),
        compared=int(case["compared"]),
        identical=int(case["identical"]),
        skipped_because=case["skipped_because"],
        seconds=to_float(case["seconds"], path),
        first_divergence=_read_divergence(case["first_divergence"], path),
        message=str(case["message"]),
        largest_ratio=None if ratio is None else to_float(ratio, path),
        largest_at=_read_divergence(case.get("largest_at"), path),
    )


def _read_divergence(value: Mapping[str, Any] | None, path: Path) -> Divergence | None:
    if value is None:
        return None
    sizes = {
        name: None if value.get(name) is None else to_float(value[name], path)
        for name in ("relative_error", "tolerance")
    }
    return Divergence.from_json({**value, **sizes})


def _known_flag(value: object) -> bool | None:
    return None if value is None else bool(value)
