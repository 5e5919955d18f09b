"""`golden dashboard` as a process: MLflow's pages in a real browser, and a clean end."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from validation.tracking.dashboard import running_server
from validation.tracking.publish import send
from validation.tracking.record import CheckRecord, MetricPoint, RunRecord
from validation.tracking.store import Store, TrackingError, quiet_client, resolve_store

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Store:
    """A store with one check."""
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    path.write_bytes(template.read_bytes())
    report = tmp_path / "report.html"
    report.write_text("<!doctype html><title>report</title><h1>drawn report</h1>")
    parent = RunRecord(
        "key", "check-of-today", {}, {"golden.kind": "check"}, "**PASS**", [], [(report, "")]
    )
    case = RunRecord("key/moe", "moe", {}, {}, "", [MetricPoint("lm_loss", 2.0, 1)])
    found = resolve_store(str(path))
    with quiet_client():
        send(CheckRecord("golden/cpu", 1000, 2000, True, parent, [case]), found)
    return found


def start(store: Store) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "validation.cli", "dashboard", "--store", store.uri, "--no-browser"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def children(pid: int) -> list[int]:
    """Processes of the session that the server leads, wherever they were moved to."""
    found = subprocess.run(
        ["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[1:]
    parent_of = {int(p): int(pp) for p, pp in (line.split() for line in found)}
    family = {pid}
    for _ in range(5):
        family |= {p for p, pp in parent_of.items() if pp in family}
    return sorted(family - {pid})


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_pages_in_a_browser_and_a_clean_end(store: Store, tmp_path: Path) -> None:
    process = start(store)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.fullmatch(
            r"MLflow: (http://127\.0\.0\.1:\d+)(/#/experiments/\d+/runs\?\S+)\n", line
        )
        assert match is not None, line
        if CHROMIUM is not None:
            page = subprocess.run(
                [
                    CHROMIUM,
                    "--headless=new",
                    "--no-sandbox",
                    "--disable-gpu",
                    f"--user-data-dir={tmp_path / 'profile'}",
                    "--virtual-time-budget=20000",
                    "--dump-dom",
                    match[1] + match[2],
                ],
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
            ).stdout
            assert "check-of-today" in page
            assert "Model registry" in page
            assert "Evaluation runs" not in page
            assert "Golden checks and benchmarks of one lane" in page
        servers = children(process.pid)
        assert servers
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert "stopped" in process.stdout.read()
        deadline = time.monotonic() + 10
        while any(map(alive, servers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [pid for pid in servers if alive(pid)]
    finally:
        process.terminate()  # and not kill, which would leave the server behind
        process.wait(timeout=60)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    database = tmp_path / "mlflow.db"
    database.write_text("this is no database")
    with (
        pytest.raises(TrackingError, match="did not start"),
        running_server(resolve_store(str(database))),
    ):
        pass


def test_a_remote_store_is_only_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    with running_server(resolve_store()) as server:
        assert (server.url, server.process) == ("https://mlflow.example.org", None)
