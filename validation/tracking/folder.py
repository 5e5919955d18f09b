"""Reads a check's folder (`verdict.json`, `traces/`, `evidence/`) into what MLflow gets."""

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from validation.files import decode_json, read_file
from validation.gate.nearness import counted
from validation.gate.verdict import CaseResult, CheckResult, Verdict
from validation.gate.verdict_file import read_verdict
from validation.report.evidence import CaseEvidence, CurveEvidence
from validation.report.gather import load_evidence
from validation.report.wording import (
    flat,
    headline,
    kind_text,
    nearest_text,
    notes,
    number_text,
    ratio_text,
    share,
    where,
)
from validation.run_folder import (
    EVIDENCE,
    JUNIT_FILE,
    LOG_FILE,
    REPORT_FILE,
    TRACES,
    VERDICT_FILE,
    RunFolder,
)
from validation.tracking.record import CheckRecord, MetricPoint, RunRecord, markdown_cell

# A family of more metrics (one per parameter) is for the report and the trace, not for charts.
MAX_FAMILY = 32

_COMMIT_DIGITS = 9
# MLflow shows so much of a name without a scroll bar, and keeps up to 250 characters.
_MAX_RUN_NAME = 200


def read_check(run_dir: Path) -> CheckRecord:
    """Reads the MLflow runs of a check's folder.

    Args:
        run_dir: the run folder.

    Returns:
        The run to send, with nested ones of the cases.

    Raises:
        DamagedFileError: the folder has no whole verdict, or a file of it is damaged.
    """
    result = read_verdict(run_dir)
    provenance = {case.case: _provenance(run_dir, case.case) for case in result.cases}
    key = evidence_key(run_dir)
    started = _started(run_dir, list(provenance.values()))
    ended = started + int(1000 * result.seconds)
    shared = next((p for p in provenance.values() if p), {})
    params = {
        "lane": result.lane,
        **_source_params(shared),
        "config_digest": _config_digest(provenance),
        "cases": ", ".join(sorted(case.case for case in result.cases)),
        **{f"environment.{k}": v for k, v in flat(result.environment) if v != "None"},
    }
    ran = [case for case in result.cases if case.skipped_because is None]
    return CheckRecord(
        experiment=f"golden/{result.lane}",
        started_ms=started,
        ended_ms=ended,
        passed=result.verdict is Verdict.PASS,
        parent=RunRecord(
            key=key,
            name=_run_name(result, shared),
            params=params,
            tags={
                "golden.kind": "check",
                "golden.run": run_dir.name,
                **_check_tags(result, shared),
            },
            note=_note(result),
            metrics=list(_check_metrics(result)),
            artifacts=_artifacts(run_dir),
        ),
        cases=[
            record
            for case in ran
            for record in _case_records(case, key, result.lane, run_dir, provenance[case.case])
        ],
    )


def _run_name(result: CheckResult, provenance: Mapping[str, Any]) -> str:
    """What the first column of MLflow's table shows: verdict, commit, what moved first."""
    commit = str(provenance.get("commit") or "")[:_COMMIT_DIGITS] or "no commit"
    changed = " + changes" if provenance.get("dirty") else ""
    bad = [c for c in result.cases if c.verdict not in (Verdict.PASS, Verdict.SKIPPED)]
    first = next((c for c in bad if c.first_divergence is not None), None)
    if first is not None and first.first_divergence is not None:
        what = f"{first.case}, {where(first.first_divergence)}"
        if len(bad) > 1:
            what += f" (and {counted(len(bad) - 1, 'more case')})"
    elif bad:
        what = f"{bad[0].case}: {headline(result)}"
    else:
        what = counted(sum(c.skipped_because is None for c in result.cases), "case")
    return f"{kind_text(result)} · {commit}{changed} · {what}"[:_MAX_RUN_NAME]


def evidence_key(run_dir: Path) -> str:
    """Returns a digest of what a run left: its verdict and its traces.

    Reports, logs and what publishing itself writes do not change it.
    """
    hasher = hashlib.blake2b(digest_size=16)
    files = [run_dir / VERDICT_FILE, *(run_dir / TRACES).rglob("*")]
    for path in sorted(p for p in files if p.is_file() and not p.is_symlink()):
        name = path.relative_to(run_dir).as_posix()
        hasher.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                hasher.update(chunk)
    return hasher.hexdigest()


def _provenance(run_dir: Path, case: str) -> Mapping[str, Any]:
    path = RunFolder(run_dir).trace(case) / "trace.json"
    if not path.exists():
        return {}
    provenance = decode_json(read_file(path), path).get("provenance")
    return provenance if isinstance(provenance, dict) else {}


def _started(run_dir: Path, provenances: Sequence[Mapping[str, Any]]) -> int:
    """Returns when the check began, in ms: as recorded, else from the folder's name."""
    moments: list[datetime] = []
    for provenance in provenances:
        with contextlib.suppress(ValueError):
            moments.append(datetime.fromisoformat(str(provenance.get("recorded"))))
    if not moments:
        with contextlib.suppress(ValueError):
            moments.append(datetime.strptime(run_dir.name[:15] + "+0000", "%Y%m%dT%H%M%S%z"))
    if not moments:
        written = (run_dir / VERDICT_FILE).stat().st_mtime
        moments.append(datetime.fromtimestamp(written, timezone.utc))
    first = min(m if m.tzinfo else m.replace(tzinfo=timezone.utc) for m in moments)
    return int(1000 * first.timestamp())


def _source_params(provenance: Mapping[str, Any]) -> dict[str, str]:
    dirty = provenance.get("dirty") or []
    return {
        "commit": str(provenance.get("commit") or "unknown"),
        "tree_digest": str(provenance.get("tree_digest") or "unknown"),
        "dirty": "yes" if dirty else "no",
    }


def _config_digest(provenance: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"{case} {p['case_digest']}" for case, p in provenance.items() if "case_digest" in p]
    return hashlib.blake2b("\n".join(sorted(lines)).encode(), digest_size=8).hexdigest()


def _check_tags(result: CheckResult, provenance: Mapping[str, Any]) -> dict[str, str]:
    tags = {
        "golden.kind": "check",
        "golden.verdict": str(result.verdict),
        "golden.lane": result.lane,
        "golden.failed": ", ".join(
            c.case for c in result.cases if c.verdict not in (Verdict.PASS, Verdict.SKIPPED)
        )
        or "none",
        "mlflow.source.type": "JOB",
        "mlflow.source.name": "golden check",
    }
    if provenance.get("command"):
        tags["golden.command"] = " ".join(map(str, provenance["command"]))
    if provenance.get("commit"):
        tags["mlflow.source.git.commit"] = str(provenance["commit"])
    if result.kind:
        tags["golden.pass"] = result.kind
    if result.calibrated_here is not None:
        tags["golden.calibrated_here"] = "yes" if result.calibrated_here else "no"
    if result.nearest is not None:
        tags |= _nearest_tags(result.nearest)
    if result.canary is not None:
        tags["golden.canary"] = result.canary.fault
        tags["golden.canary_caught"] = "yes" if result.canary.caught else "no"
    first = next((c for c in result.cases if c.first_divergence is not None), None)
    return tags | (_divergence_tags(first) if first is not None else {})


def _divergence_tags(case: CaseResult) -> dict[str, str]:
    divergence = case.first_divergence
    if divergence is None:
        return {}
    tags = {"golden.first_divergence": f"{case.case}: {where(divergence)}"}
    for name in ("step", "phase", "module", "tensor", "rank"):
        value = getattr(divergence, name)
        if value is not None:
            tags[f"golden.divergence.{name}"] = str(value)
    return tags


def _nearest_tags(case: CaseResult) -> dict[str, str]:
    text = nearest_text(case)
    return {"golden.nearest": f"{case.case}: {text}"} if text else {}


def _ratio_metric(case: CaseResult | None) -> Iterator[MetricPoint]:
    """The largest ratio of error to tolerance; what is infinite is told by a tag."""
    if case is not None and case.largest_ratio is not None and math.isfinite(case.largest_ratio):
        yield MetricPoint("largest_ratio", case.largest_ratio)


def _check_metrics(result: CheckResult) -> Iterator[MetricPoint]:
    compared = sum(case.compared for case in result.cases)
    identical = sum(case.identical for case in result.cases)
    verdicts = Counter(case.verdict for case in result.cases)
    yield MetricPoint("seconds", result.seconds)
    yield MetricPoint("records_compared", compared)
    yield MetricPoint("records_identical", identical)
    yield MetricPoint("identical_fraction", identical / compared if compared else 0.0)
    yield from _ratio_metric(result.nearest)
    for verdict in Verdict:
        yield MetricPoint(f"cases_{verdict.lower()}", verdicts[verdict])
    for case in result.cases:
        if case.skipped_because is None:
            yield MetricPoint(f"seconds/{case.case}", case.seconds)


def _case_records(
    case: CaseResult, key: str, lane: str, run_dir: Path, provenance: Mapping[str, Any]
) -> Iterator[RunRecord]:
    """The case's run, and its golden's, whose metrics have the same names: one chart shows both."""
    evidence = load_evidence(run_dir, case.case) or CaseEvidence()
    params = {"case": case.case, "lane": lane, **_source_params(provenance)}
    params |= {f"settings.{k}": v for k, v in flat(provenance.get("settings") or {})}
    for name in ("case_digest", "source_digest"):
        if name in provenance:
            params[name] = str(provenance[name])
    totals = {
        "seconds": case.seconds,
        "records_compared": float(case.compared),
        "records_identical": float(case.identical),
    }
    yield RunRecord(
        key=f"{key}/{case.case}",
        name=_case_name(case),
        params=params,
        tags={
            "golden.kind": "case",
            "golden.case": case.case,
            "golden.lane": lane,
            "golden.verdict": str(case.verdict),
            **({"golden.pass": case.kind} if case.kind else {}),
            **_nearest_tags(case),
            **_divergence_tags(case),
        },
        note=_case_note(case),
        metrics=[
            *(MetricPoint(name, value) for name, value in totals.items()),
            *_ratio_metric(case),
            *_curve_metrics(evidence.curves),
        ],
    )
    expected = [
        MetricPoint(curve.metric, value, step)
        for curve in _shown(evidence.curves)
        for step, value in zip(curve.steps, curve.golden, strict=True)
        if value is not None
    ]
    if expected:
        yield RunRecord(
            key=f"{key}/{case.case}/golden",
            name=f"{case.case} · golden",
            params={"case": case.case, "lane": lane},
            tags={"golden.kind": "golden", "golden.case": case.case, "golden.lane": lane},
            note=f"What {markdown_cell(case.case)} was compared with.",
            metrics=expected,
        )


def _case_name(case: CaseResult) -> str:
    name = f"{case.case} · {kind_text(case)}"
    if case.first_divergence is not None:
        name += f" · {where(case.first_divergence)}"
    return name[:_MAX_RUN_NAME]


def _shown(curves: Sequence[CurveEvidence]) -> list[CurveEvidence]:
    """Those whose family is small enough for charts."""
    families = Counter(curve.metric.partition("/")[0] for curve in curves)
    return [c for c in curves if families[c.metric.partition("/")[0]] <= MAX_FAMILY]


def _curve_metrics(curves: Sequence[CurveEvidence]) -> Iterator[MetricPoint]:
    """Per step: the value, and its relative deviation from the golden's."""
    for curve in _shown(curves):
        for step, golden, actual in zip(curve.steps, curve.golden, curve.actual, strict=True):
            if actual is not None:
                yield MetricPoint(curve.metric, actual, step)
            if golden is not None and actual is not None:
                gap = abs(actual - golden)
                deviation = gap / abs(golden) if golden else gap
                yield MetricPoint(f"deviation/{curve.metric}", deviation, step)


def _artifacts(run_dir: Path) -> list[tuple[Path, str]]:
    files = [run_dir / name for name in (VERDICT_FILE, REPORT_FILE, JUNIT_FILE, LOG_FILE)]
    folders = [(run_dir / name, name) for name in (TRACES, EVIDENCE)]
    return [
        *((path, "") for path in files if path.is_file()),
        *(f for f in folders if f[0].is_dir()),
    ]


def _note(result: CheckResult) -> str:
    """Returns the description that MLflow shows on top of a run, in Markdown."""
    compared = sum(case.compared for case in result.cases)
    identical = sum(case.identical for case in result.cases)
    rows = [
        f"| {markdown_cell(c.case)} | {kind_text(c)} | {c.compared:,} | "
        f"{share(c.identical, c.compared)} | {ratio_text(c.largest_ratio)} |"
        for c in result.cases
    ]
    return "\n".join(
        [
            f"**{result.verdict}** {markdown_cell(headline(result))}",
            *(f"\n{markdown_cell(note)}" for note in notes(result)),
            "",
            f"{counted(compared, 'record')} compared, {share(identical, compared)} bit-identical. "
            f"Full report: artifact `{REPORT_FILE}`.",
            "",
            "| case | verdict | compared | bit-identical | largest ratio |",
            "| --- | --- | --- | --- | --- |",
            *rows,
        ]
    )


def _case_note(case: CaseResult) -> str:
    lines = [f"**{kind_text(case)}** {markdown_cell(case.message)}".rstrip()]
    if nearest_text(case):
        lines.append(f"{markdown_cell(nearest_text(case))}.")
    divergence = case.first_divergence
    if divergence is not None:
        lines.append(f"First divergence: {markdown_cell(where(divergence))}.")
        if divergence.relative_error is not None:
            lines.append(
                f"Relative error {number_text(divergence.relative_error)}, "
                f"tolerance {number_text(divergence.tolerance)}."
            )
    return "\n\n".join(lines)
