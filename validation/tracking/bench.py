"""Reads a benchmark's folder (`bench.json`, `logs/`) into what MLflow gets."""

import hashlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from validation.files import (
    DamagedFileError,
    check_schema,
    decode_json,
    read_file,
    safe_name,
    to_float,
)
from validation.gate.verdict import Verdict
from validation.report.charts import format_number
from validation.report.wording import flat
from validation.run_folder import BENCH_FILE
from validation.throughput.session import SIDES
from validation.tracking.record import CheckRecord, MetricPoint, RunRecord, markdown_cell

TREND_FILE = "trend.html"
_SHOWN_OPERATORS = 10
# Figures whose name in `bench.json` is not the metric's.
_METRICS = {"peak_bytes": "peak_memory_bytes"}
_BLOCK_METRICS = ("seconds", "step_seconds", "reference_seconds", "optimizer_seconds", "peak_bytes")


def read_bench(run_dir: Path) -> CheckRecord:
    """Reads the MLflow runs of a benchmark's folder.

    Args:
        run_dir: the run folder.

    Returns:
        The run to send, with nested ones of the cases.

    Raises:
        DamagedFileError: the folder has no whole `bench.json`; its path comes first.
    """
    path = run_dir / BENCH_FILE
    content = read_file(path)
    document = decode_json(content, path)
    check_schema(document, path)
    try:
        return _record(run_dir, document, hashlib.blake2b(content, digest_size=16).hexdigest())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFileError(f"{path}: not a benchmark: {error!r}") from error


def _record(run_dir: Path, document: Mapping[str, Any], key: str) -> CheckRecord:
    lane, verdict = str(document["lane"]), Verdict(document["verdict"])
    cases = list(document["cases"])
    for case in cases:
        if not safe_name(str(case["case"])):
            raise ValueError(f"{case['case']!r} is no name of a case")
    ran = [case for case in cases if case["figures"]]
    started = int(1000 * datetime.fromisoformat(str(document["began"])).timestamp())
    seconds = to_float(document["seconds"], run_dir / BENCH_FILE)
    # A planted slowdown is neither the code's speed nor a PASS to compare with.
    kind = "bench" if document["fault"] is None else "planted_bench"
    environment: Mapping[str, Any] = next(
        (case["facts"]["head"]["environment"] for case in ran), {}
    )
    return CheckRecord(
        experiment=f"golden/{lane}",
        started_ms=started,
        ended_ms=started + int(1000 * seconds),
        passed=verdict is Verdict.PASS,
        parent=RunRecord(
            key=key,
            name=run_dir.name,
            params={
                "lane": lane,
                "commit": str(document["head"]),
                "source_digest": str(document["source_digest"]),
                "base": str(document["base"]),
                "fault": str(document["fault"] or "none"),
                "cases": ", ".join(sorted(str(case["case"]) for case in cases)),
                **{f"environment.{k}": v for k, v in flat(environment) if v != "None"},
            },
            tags={
                "golden.kind": kind,
                "golden.run": run_dir.name,
                "golden.verdict": str(verdict),
                "golden.lane": lane,
                "golden.failed": ", ".join(
                    str(c["case"]) for c in cases if c["verdict"] not in ("PASS", "SKIPPED")
                )
                or "none",
                "mlflow.source.type": "JOB",
                "mlflow.source.name": "golden bench",
                "mlflow.source.git.commit": str(document["head"]),
            },
            note=_note(verdict, cases),
            metrics=[
                MetricPoint("seconds", seconds),
                *(
                    MetricPoint(f"{name}/{case['case']}", value)
                    for case in ran
                    for name, value in _totals(case)
                ),
            ],
            artifacts=_artifacts(run_dir),
        ),
        cases=[_case_record(case, key, kind, document) for case in cases if case["figures"]],
    )


def _case_record(
    case: Mapping[str, Any], key: str, kind: str, document: Mapping[str, Any]
) -> RunRecord:
    name = str(case["case"])
    facts = {k: v for k, v in case["facts"]["head"].items() if k != "environment"}
    return RunRecord(
        key=f"{key}/{name}",
        name=name,
        params={
            "case": name,
            "lane": str(document["lane"]),
            "commit": str(document["head"]),
            "base": str(document["base"]),
            **{k: v for k, v in flat(facts) if v != "None"},
        },
        tags={
            "golden.kind": f"{kind}_case",
            "golden.case": name,
            "golden.lane": str(document["lane"]),
            "golden.verdict": str(Verdict(case["verdict"])),
        },
        note=_case_note(case),
        metrics=[
            *(MetricPoint(*total) for total in _totals(case)),
            *(MetricPoint(f"base/{n}", v) for n, v in _figures(case["figures"]["base"])),
            *_block_metrics(case["quads"]),
        ],
    )


def _totals(case: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The head's figures, and what was proved."""
    yield from _figures(case["figures"]["head"])
    for prefix, judgement in (("", case["judgement"]), ("whole_", case.get("whole"))):
        if judgement is None:  # before blocks were judged as a whole, too
            continue
        yield f"{prefix}head_over_base", float(judgement["ratio"])
        yield f"{prefix}head_over_base_low", float(judgement["low"])
        yield f"{prefix}head_over_base_high", float(judgement["high"])
        yield f"{prefix}p_value", float(judgement["p"])
    detectable = case["judgement"]["detectable"]
    if detectable is not None:
        yield "detectable_slowdown", float(detectable) - 1.0
    yield "memory_head_over_base", float(case["memory_ratio"])


def _figures(figures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if value is not None:
            yield _METRICS.get(name, name), float(value)


def _block_metrics(quads: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[MetricPoint]:
    """Times and memory of each side's blocks, and what the watch saw, by number of block."""
    blocks = (block for quad in quads for block in quad)
    for number, block in enumerate(blocks, start=1):
        side = block["side"]
        if side not in SIDES:
            raise ValueError(f"{side!r} is no side")
        times = {**block, "step_seconds": statistics.median(block["laps"])}
        for name in _BLOCK_METRICS:
            metric = _METRICS.get(name, name)
            yield MetricPoint(f"block/{side}/{metric}", float(times[name]), number)
        for name, value in block["machine"].items():
            if value is not None:
                yield MetricPoint(f"machine/{name}", float(value), number)


def _artifacts(run_dir: Path) -> list[tuple[Path, str]]:
    files = [(run_dir / name, "") for name in (BENCH_FILE, TREND_FILE)]
    logs = run_dir / "logs"
    return [*(f for f in files if f[0].is_file()), *([(logs, "logs")] if logs.is_dir() else [])]


def _note(verdict: Verdict, cases: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for case in cases:
        ratio = case["judgement"]["ratio"] if case["judgement"] else None
        shown = "-" if ratio is None else f"{ratio:.4f}"
        words = (case["case"], case["verdict"], shown, case["message"])
        rows.append("| " + " | ".join(markdown_cell(str(word)) for word in words) + " |")
    head = ["| case | verdict | head / base | |", "| --- | --- | --- | --- |"]
    return "\n".join([f"**{verdict}** Past benchmarks: artifact `{TREND_FILE}`.", "", *head, *rows])


def _case_note(case: Mapping[str, Any]) -> str:
    """What was found, and what got slower most."""
    lines = [f"**{case['verdict']}** {markdown_cell(str(case['message']))}".rstrip()]
    operators = case["operators"][:_SHOWN_OPERATORS]
    if operators:
        lines += ["", "| ms of a step, profiled | base | head | difference |"]
        lines.append("| --- | --- | --- | --- |")
    for change in operators:
        times = (change["base"], change["head"], change["difference"])
        cells = ("-" if t is None else format_number(1e3 * t, 4) for t in times)
        lines.append(f"| {markdown_cell(str(change['name']))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
