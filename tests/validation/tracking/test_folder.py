"""A run folder becomes MLflow runs; a store that cannot be written never costs the verdict."""

import html
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from validation.compare import Divergence, Tolerances, compare
from validation.files import DamagedFileError, encode_json
from validation.gate.verdict import Canary, CaseResult, CheckResult, Verdict
from validation.gate.verdict_file import read_verdict
from validation.report import write_reports
from validation.trace import CurveKey, Event, Key, Trace, save_trace
from validation.tracking.folder import MAX_FAMILY, evidence_key, read_check
from validation.tracking.publish import STATE_FILE, pending, publish_run
from validation.tracking.record import markdown_cell
from validation.tracking.store import quiet_client, resolve_store

NAME = "20260102T030405-cpu-0123456789ab"


def trace(loss: float) -> Trace:
    names = [f"parameter_grad_norm/layer.{i}" for i in range(MAX_FAMILY + 1)]
    curves = {
        CurveKey("lm_loss"): {s: loss / s for s in range(1, 6)},
        **{CurveKey(n): {1: 1.0} for n in names},
    }
    return Trace(
        case="moe",
        provenance={
            "commit": "c0ffee",
            "source_digest": "0123",
            "tree_digest": "4567",
            "dirty": [],
            "case_digest": "d1",
            "recorded": "2026-01-02T03:04:05+00:00",
            "settings": {"preset": "tiny", "flags": ["--a", "1"]},
        },
        events=[Event(Key(1, 0, "data", "batch", "tokens"), "digest")],
        curves=curves,
        curve_phases=dict.fromkeys(curves, "forward"),
    )


def run_folder(root: Path, *, loss: float = 3.0, name: str = NAME) -> Path:
    folder = root / "runs" / name
    actual = trace(loss)
    comparison = compare(trace(3.0), actual, Tolerances({"curve:lm_loss": {1: 1e-6}}))
    first = comparison.divergences[0] if comparison.divergences else None
    case = CaseResult(
        "moe",
        Verdict.FAIL if first else Verdict.PASS,
        comparison.compared,
        comparison.identical,
        seconds=2.5,
        first_divergence=first,
        comparison=comparison,
    )
    skipped = CaseResult("gpu_only", Verdict.SKIPPED, skipped_because="needs a GPU")
    result = CheckResult(
        case.verdict,
        "cpu",
        4.0,
        {"torch": "2.11.0", "cuda": None},
        Canary("scale", True),
        [case, skipped],
    )
    save_trace(actual, folder / "traces" / "moe")
    write_reports(result, folder)
    (folder / "log.txt").write_text("log")
    (folder / "verdict.json").write_bytes(encode_json(result.to_json()))
    return folder


@pytest.fixture
def store(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    path.write_bytes(template.read_bytes())
    with quiet_client():
        yield str(path)


def test_which_pass_and_how_near_come_back_and_are_logged(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, loss=3.0)
    path = folder / "verdict.json"
    document = json.loads(path.read_text())
    place = {"step": 2, "phase": "forward", "module": "layer", "tensor": "output", "new": 1}
    near = {"largest_ratio": 0.43, "largest_at": place, "identical": 1}
    document["cases"][0] |= near
    document |= {"calibrated_here": False, "message": "WITHIN TOLERANCE: 1 case\nNobody"}
    path.write_text(json.dumps(document))
    result = read_verdict(folder)
    assert (result.kind, result.calibrated_here) == ("WITHIN TOLERANCE", False)
    assert result.cases[0].largest_at == Divergence(2, None, "forward", "layer", "output")
    record = read_check(folder)
    assert record.parent.tags["golden.pass"] == "WITHIN TOLERANCE"
    assert record.parent.tags["golden.calibrated_here"] == "no"
    assert "0.43 at step 2, forward, layer, output" in record.parent.tags["golden.nearest"]
    assert {m.name: m.value for m in record.parent.metrics}["largest_ratio"] == 0.43
    assert record.cases[0].tags["golden.pass"] == "WITHIN TOLERANCE"
    assert "Nobody" in record.parent.note
    # Nothing was allowed: infinity is no metric, and an older folder says nothing of it.
    document["cases"][0]["largest_ratio"] = "inf"
    path.write_text(json.dumps(document))
    assert read_verdict(folder).cases[0].largest_ratio == math.inf
    assert "largest_ratio" not in {m.name for m in read_check(folder).parent.metrics}
    for name in ("largest_ratio", "largest_at"):
        del document["cases"][0][name]
    for name in ("calibrated_here", "message", "largest_ratio"):
        document.pop(name, None)
    path.write_text(json.dumps(document))
    assert read_verdict(folder).cases[0].largest_ratio is None
    assert "golden.calibrated_here" not in read_check(folder).parent.tags


def test_a_folder_is_described_whole(tmp_path: Path) -> None:
    record = read_check(run_folder(tmp_path, loss=3.3))
    assert record.experiment == "golden/cpu"
    assert (record.started_ms, record.ended_ms) == (1767323045000, 1767323049000)
    assert not record.passed
    params = record.parent.params
    assert params["commit"] == "c0ffee"
    assert params["dirty"] == "no"
    assert params["environment.torch"] == "2.11.0"
    assert "environment.cuda" not in params
    tags = record.parent.tags
    assert tags["golden.verdict"] == "FAIL"
    assert tags["golden.failed"] == "moe"
    assert tags["golden.divergence.tensor"] == "lm_loss"
    metrics = {m.name: m.value for m in record.parent.metrics}
    assert metrics["seconds/moe"] == 2.5
    assert metrics["cases_skipped"] == 1
    assert {p.name for p, _ in record.parent.artifacts} == {
        "verdict.json",
        "report.html",
        "junit.xml",
        "log.txt",
        "traces",
        "evidence",
    }
    assert record.parent.name == "FAIL · c0ffee · moe, step 1, forward, training, lm_loss, rank 0"
    case, golden = record.cases
    assert case.name == "moe · FAIL · step 1, forward, training, lm_loss, rank 0"
    points = {(m.name, m.step): m.value for m in case.metrics}
    assert points["lm_loss", 2] == 1.65
    assert golden.name == "moe · golden"
    assert "golden.verdict" not in golden.tags
    expected = {(m.name, m.step): m.value for m in golden.metrics}
    assert expected["lm_loss", 2] == 1.5
    # One chart shows both: the golden has the case's metrics, by their names.
    assert {name for name, _ in expected} <= {name for name, _ in points}
    assert points["deviation/lm_loss", 2] == pytest.approx(0.1)
    assert case.params["settings.preset"] == "tiny"
    assert not [name for name, _ in points if "parameter_grad_norm" in name]


def test_the_verdict_reads_back_as_it_was_written(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, loss=float("nan"))
    document = json.loads((folder / "verdict.json").read_text())
    assert document["cases"][0]["first_divergence"]["relative_error"] == "nan"
    assert read_verdict(folder).to_json() == document


def test_the_key_is_of_the_evidence_alone(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    key = evidence_key(folder)
    (folder / "report.html").write_text("redrawn")
    (folder / STATE_FILE).write_text("{}")
    assert evidence_key(folder) == key
    moved = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, moved)
    assert evidence_key(moved) == key
    curves = folder / "traces" / "moe" / "curves.json"
    curves.write_text(curves.read_text().replace("1.5", "1.6"))
    assert evidence_key(folder) != key


@pytest.mark.parametrize(
    "damage",
    [b"", b"{}", b"[]", b'{"verdict": "MAYBE"}', b"\xff\xfe"],
)
def test_a_damaged_verdict_is_not_published(tmp_path: Path, store: str, damage: bytes) -> None:
    folder = run_folder(tmp_path)
    (folder / "verdict.json").write_bytes(damage)
    with pytest.raises(DamagedFileError, match=r"verdict\.json"):
        read_verdict(folder)
    result = publish_run(folder, store=store)
    assert not result.sent
    assert "not a readable run" in result.message


def test_a_case_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    text = (folder / "verdict.json").read_text().replace('"moe"', '"../../moe"')
    (folder / "verdict.json").write_text(text)
    with pytest.raises(DamagedFileError, match="no name of a case"):
        read_verdict(folder)


def test_published_once_from_anywhere(tmp_path: Path, store: str) -> None:
    folder = run_folder(tmp_path)
    assert pending(tmp_path / "runs", store=store) == [folder]
    first = publish_run(folder, store=store)
    assert first.sent, first.message
    assert pending(tmp_path / "runs", store=store) == []
    copy = tmp_path / "copied" / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(STATE_FILE))
    assert publish_run(copy, store=store).run_id == first.run_id
    client = resolve_store(store).client()
    (experiment,) = client.search_experiments(filter_string="name = 'golden/cpu'")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == [
        "PASS IDENTICAL · c0ffee · 1 case",
        "moe · PASS IDENTICAL",
        "moe · golden",
    ]
    states = {run.info.run_name: run.info.status for run in runs}
    assert set(states.values()) == {"FINISHED"}
    assert [a.path for a in client.list_artifacts(first.run_id)] == [
        "evidence",
        "junit.xml",
        "log.txt",
        "report.html",
        "traces",
        "verdict.json",
    ]


def test_an_unwritable_store_is_a_message_and_the_run_waits(tmp_path: Path, store: str) -> None:
    folder = run_folder(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    uri = str(blocked / "mlflow.db")
    result = publish_run(folder, store=uri)
    assert not result.sent
    assert "cannot be written" in result.message
    assert "\n" not in result.message
    assert pending(tmp_path / "runs", store=uri) == [folder]
    state = json.loads((folder / STATE_FILE).read_text())
    assert [entry["sent"] for entry in state["stores"].values()] == [False]
    # Another store takes it, and what one store holds says nothing of the other.
    assert publish_run(folder, store=store).sent
    assert pending(tmp_path / "runs", store=store) == []
    assert pending(tmp_path / "runs", store=uri) == [folder]


def test_a_dead_server_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = publish_run(run_folder(tmp_path))
    assert not result.sent
    assert result.store == "http://127.0.0.1:9"


def test_the_default_store_is_inside_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / ".git").mkdir()
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    found = resolve_store()
    assert found.uri == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert found.artifacts == tmp_path / "mlruns" / "artifacts"
    assert not (tmp_path / "mlruns").exists()
    found.client()
    assert (tmp_path / "mlruns" / ".gitignore").read_text() == "*\n"


def test_without_mlflow_nothing_breaks(tmp_path: Path) -> None:
    """In a process where MLflow cannot be found, as in a base installation."""
    folder = run_folder(tmp_path)
    script = (
        "import sys, importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'mlflow' else real(n, *a)\n"
        "from pathlib import Path\n"
        "from validation.tracking.publish import publish_run\n"
        f"result = publish_run(Path({str(folder)!r}), store={str(tmp_path / 'm.db')!r})\n"
        "assert not result.sent and 'pip install' in result.message, result\n"
        "assert 'mlflow' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_redrawn_or_incomplete_folder_still_publishes(tmp_path: Path, store: str) -> None:
    folder = run_folder(tmp_path)
    for name in ("report.html", "junit.xml", "log.txt"):
        (folder / name).unlink()
    shutil.rmtree(folder / "evidence")
    assert publish_run(folder, store=store).sent


def test_a_check_without_any_trace_still_publishes(tmp_path: Path, store: str) -> None:
    folder = run_folder(tmp_path)
    shutil.rmtree(folder / "traces")
    result = read_verdict(folder)
    bare = replace(result, cases=[result.cases[1]], verdict=Verdict.INVALID)
    (folder / "verdict.json").write_bytes(encode_json(bare.to_json()))
    assert publish_run(folder, store=store).sent


@pytest.mark.parametrize(
    "hostile",
    ["https://evil.example", "www.evil.example", "@octocat", "a@evil.example", "[x](y) | <b> `z`"],
)
def test_a_note_makes_no_link_of_what_a_run_says(hostile: str) -> None:
    shown = markdown_cell(hostile)
    assert not re.search(r"://|www\.|@|(?<!\\)[\[|<`]", shown)
    assert html.unescape(re.sub(r"\\(.)", r"\1", shown)) == hostile
