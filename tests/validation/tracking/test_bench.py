"""A benchmark's folder becomes MLflow runs: figures of both sides, blocks, what the watch saw."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from validation.files import DamagedFileError, encode_json
from validation.gate.verdict import Verdict
from validation.run_folder import BENCH_FILE
from validation.throughput.bench import BenchResult, CaseBench
from validation.throughput.figures import OperatorChange, figures_of
from validation.throughput.session import SIDES, Block, Quad
from validation.throughput.statistics import judge
from validation.tracking.bench import TREND_FILE, read_bench
from validation.tracking.publish import pending, publish_run
from validation.tracking.record import RunRecord
from validation.tracking.store import quiet_client, resolve_store

FACTS = {"environment": {"device": "NVIDIA H200", "torch": "2.11.0"}, "flops_per_token": 7.0}


def block(side: str, number: int, seconds: float) -> Block:
    return Block(
        side=side,
        began=float(number),
        steps=2,
        seconds=2 * seconds + (0.1 if side == "head" else 0.0),
        laps=[seconds, seconds],
        tokens=64,
        peak_bytes=1000 + number,
        reference_seconds=0.1,
        optimizer_seconds=0.2 * seconds,
        machine={"watts": 600.0 + number, "celsius": None, "reasons": 0},
    )


def result(verdict: Verdict = Verdict.PASS, fault: str | None = None) -> BenchResult:
    quads = [
        Quad([block(s, 4 * q + i, 0.5 + 0.01 * (s == "head")) for i, s in enumerate(order)])
        for q, order in enumerate([("base", "head", "head", "base")] * 16)
    ]
    blocks = [b for quad in quads for b in quad.blocks]
    case = CaseBench(
        case="moe",
        verdict=verdict,
        message="" if verdict is Verdict.PASS else "steps are 2 % slower",
        judgement=judge([[quad.effect for quad in quads]], min_effect=0.5),
        whole=judge([[quad.whole_effect for quad in quads]], min_effect=0.5),
        figures={s: figures_of([b for b in blocks if b.side == s], FACTS) for s in SIDES},
        memory_ratio=1.25,
        quads=quads,
        operators=[OperatorChange("aten::mm|x", 0.001, 0.003)],
        facts=dict.fromkeys(SIDES, FACTS),
    )
    skipped = CaseBench(case="gpu", verdict=Verdict.SKIPPED, message="needs two GPUs")
    return BenchResult(
        verdict=verdict,
        lane="h200",
        base="b" * 40,
        head="c" * 40,
        source_digest="0123",
        began="2026-01-02T03:04:05+00:00",
        seconds=60.0,
        fault=fault,
        cases=[case, skipped],
    )


def run_folder(root: Path, name: str = "20260102T030405-h200-0123", **more: Any) -> Path:
    folder = root / "runs" / name
    (folder / "logs" / "moe").mkdir(parents=True)
    (folder / "logs" / "moe" / "head.log").write_text("trained")
    (folder / TREND_FILE).write_text("<!doctype html>")
    (folder / BENCH_FILE).write_bytes(encode_json(result(**more).to_json(raw=True)))
    return folder


def metrics(run: RunRecord) -> dict[tuple[str, int], float]:
    found = {(m.name, m.step): m.value for m in run.metrics}
    assert len(found) == len(run.metrics)
    return found


def test_figures_blocks_and_telemetry_are_metrics(tmp_path: Path) -> None:
    record = read_bench(run_folder(tmp_path))
    assert record.experiment == "golden/h200"
    assert (record.started_ms, record.ended_ms) == (1767323045000, 1767323105000)
    assert record.passed
    params = record.parent.params
    assert (params["commit"], params["base"]) == ("c" * 40, "b" * 40)
    assert params["environment.torch"] == "2.11.0"
    assert record.parent.tags["golden.kind"] == "bench"
    of_run = metrics(record.parent)
    assert of_run["step_seconds/moe", 0] == pytest.approx(0.51)
    assert of_run["tokens_per_second/moe", 0] == pytest.approx(32 / 0.51)
    assert of_run["mfu/moe", 0] == pytest.approx(7 * 32 / 0.51 / 989.4e12)
    assert of_run["head_over_base/moe", 0] == pytest.approx(0.51 / 0.5)
    assert of_run["whole_head_over_base/moe", 0] == pytest.approx(1.12)
    assert of_run["memory_head_over_base/moe", 0] == 1.25
    (case,) = record.cases
    of_case = metrics(case)
    assert of_case["step_seconds", 0] == pytest.approx(0.51)
    assert of_case["base/step_seconds", 0] == pytest.approx(0.5)
    assert of_case["base/peak_memory_bytes", 0] > 1000
    # The second block of the first quad is the head's.
    assert of_case["block/head/step_seconds", 2] == pytest.approx(0.51)
    assert of_case["block/head/seconds", 2] == pytest.approx(1.12)
    assert of_case["block/base/peak_memory_bytes", 1] == 1000
    assert ("block/base/step_seconds", 2) not in of_case
    assert [of_case["machine/watts", n] for n in (1, 2, 64)] == [600, 601, 663]
    assert not [name for name, _ in of_case if name == "machine/celsius"]
    assert case.params["flops_per_token"] == "7.0"
    assert "| aten::mm\\|x | 1 | 3 | 2 |" in case.note


def test_a_planted_slowdown_is_not_the_codes_speed(tmp_path: Path) -> None:
    record = read_bench(run_folder(tmp_path, verdict=Verdict.FAIL, fault="m:slow"))
    assert not record.passed
    assert record.parent.tags["golden.kind"] == "planted_bench"
    assert record.parent.tags["golden.failed"] == "moe"
    assert record.parent.params["fault"] == "m:slow"
    assert "2 % slower" in record.parent.note


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    path.write_bytes(template.read_bytes())
    with quiet_client():
        yield str(path)


def test_benchmarks_are_published_once_and_say_what_changed(tmp_path: Path, store: str) -> None:
    first = run_folder(tmp_path)
    assert pending(tmp_path / "runs", store=store) == [first]
    sent = publish_run(first, store=store)
    assert sent.sent, sent.message
    assert publish_run(first, store=store).run_id == sent.run_id
    assert pending(tmp_path / "runs", store=store) == []
    slower = result(verdict=Verdict.FAIL).to_json(raw=True)
    slower |= {"head": "d" * 40, "began": "2026-01-03T03:04:05+00:00"}
    second = run_folder(tmp_path, name="20260103T030405-h200-4567")
    (second / BENCH_FILE).write_bytes(encode_json(slower))
    assert publish_run(second, store=store).sent
    client = resolve_store(store).client()
    (experiment,) = client.search_experiments(filter_string="name = 'golden/h200'")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(r.info.run_name for r in runs) == sorted([first.name, second.name, "moe", "moe"])
    (failed,) = [r for r in runs if r.info.run_name == second.name]
    assert failed.data.tags["golden.changed"] == "commit"
    assert failed.data.tags["golden.last_pass"] == sent.run_id
    nested = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == sent.run_id]
    assert [r.info.run_name for r in nested] == ["moe"]
    watts = client.get_metric_history(nested[0].info.run_id, "machine/watts")
    assert [m.step for m in watts] == list(range(1, 65))
    artifacts = [a.path for a in client.list_artifacts(sent.run_id)]
    assert artifacts == [BENCH_FILE, "logs", TREND_FILE]


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": 0},
        {"verdict": "MAYBE"},
        {"cases": [{"case": "../../moe", "figures": {}}]},
        {"cases": [{"case": "moe"}]},
        {"cases": 7},
        {"began": "yesterday"},
    ],
)
def test_a_damaged_benchmark_is_a_message(tmp_path: Path, store: str, damage: Any) -> None:
    folder = run_folder(tmp_path)
    document = json.loads((folder / BENCH_FILE).read_text())
    (folder / BENCH_FILE).write_text(json.dumps({**document, **damage}))
    with pytest.raises(DamagedFileError, match=r"bench\.json"):
        read_bench(folder)
    outcome = publish_run(folder, store=store)
    assert not outcome.sent
    assert "not a readable run" in outcome.message
