"""`golden check` loses its MLflow server to SIGKILL: the verdict stands, the run is sent later."""

import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from validation.trace import load_trace
from validation.tracking.dashboard import free_port, running_server
from validation.tracking.store import Store, quiet_client, resolve_store

pytest.importorskip("mlflow")

# The first case's metrics are there then; no run is complete, and no artifact is sent.
REQUESTS_BEFORE_DEATH = 11


def kill(server: subprocess.Popen[bytes]) -> None:
    """As the kernel does when memory runs out: the server and its workers."""
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@contextmanager
def killing_proxy(port: int, server: subprocess.Popen[bytes], posts: int) -> Iterator[int]:
    """A port that leads to the server, which dies when one more POST comes than these."""
    left, lock = [posts], threading.Lock()

    def forward(source: socket.socket, target: socket.socket, *, counted: bool) -> None:
        try:
            while data := source.recv(65536):
                if counted:
                    with lock:
                        left[0] -= data.count(b"POST /api/")
                        dead = left[0] < 0
                    if dead and server.poll() is None:
                        kill(server)
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                target = socket.create_connection(("127.0.0.1", port))
            except OSError:
                return
            with target:
                back = threading.Thread(
                    target=forward, args=(target, self.request), kwargs={"counted": False}
                )
                back.start()
                forward(self.request, target, counted=True)
                back.join()

    class Proxy(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Proxy(("127.0.0.1", 0), Handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield int(proxy.server_address[1])
        finally:
            proxy.shutdown()


def without_times(verdict: Any) -> Any:
    """A verdict's JSON but for what a clock says."""
    cases = [{k: v for k, v in case.items() if k != "seconds"} for case in verdict["cases"]]
    return {**{k: v for k, v in verdict.items() if k != "seconds"}, "cases": cases}


def artifacts(client: Any, run_id: str, folder: str | None = None) -> list[str]:
    """Paths of a run's files."""
    found: list[str] = []
    for entry in client.list_artifacts(run_id, folder):
        found += artifacts(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return sorted(found)


def held(store: Store) -> dict[str, Any]:
    """Everything that a store shows: checks by name, each with its nested runs."""
    client = store.client()
    (experiment,) = client.search_experiments(filter_string="name = 'golden/cpu'")
    runs = client.search_runs([experiment.experiment_id])
    names = {r.info.run_id: r.data.tags.get("golden.run", r.info.run_name) for r in runs}
    shown: dict[str, Any] = {}
    for run in runs:
        parent = run.data.tags.get("mlflow.parentRunId")
        # A run that its server's death cut short has no tags yet: MLflow's own name tells it apart.
        case = run.data.tags.get("golden.case", run.info.run_name)
        kind = run.data.tags.get("golden.kind")
        name = f"{names[parent]}/{case}/{kind}" if parent else names[run.info.run_id]
        assert name not in shown, "a run is there twice"
        shown[name] = {
            "status": run.info.status,
            "times": (run.info.start_time, run.info.end_time),
            "params": dict(run.data.params),
            "tags": {
                k: v
                for k, v in run.data.tags.items()
                if k.startswith("golden.") and k != "golden.last_pass"
            },
            "metrics": {
                key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
                for key in run.data.metrics
            },
            "artifacts": artifacts(client, run.info.run_id),
        }
    return shown


def holds_what_is_on_disk(shown: dict[str, Any], folders: list[Path]) -> None:
    """Runs, every curve of every trace, and files: all of them, and no more."""
    cases = {
        f"{f.name}/{t.name}/{kind}"
        for f in folders
        for t in (f / "traces").iterdir()
        for kind in ("case", "golden")
    }
    assert set(shown) == {f.name for f in folders} | cases
    for folder in folders:
        files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        own = (".publish.lock", "publish.json")
        assert shown[folder.name]["artifacts"] == sorted(f for f in files if f not in own)
        for path in (folder / "traces").iterdir():
            case = shown[f"{folder.name}/{path.name}/case"]
            assert case["status"] == "FINISHED"
            assert shown[f"{folder.name}/{path.name}/golden"]["status"] == "FINISHED"
            curves = load_trace(path).curves
            assert len(curves) >= 3
            for metric, values in curves.items():
                assert case["metrics"][str(metric)] == sorted(values.items()), metric


def test_a_check_that_loses_its_server(
    golden_project: Any, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = golden_project
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    expected = without_times(project.golden("check", "--json").json())
    folders = {project.latest_run()}
    store = resolve_store(str(tmp_path / "store" / "mlflow.db"))
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mlflow.db").write_bytes(template.read_bytes())
    port = free_port()
    address = f"http://127.0.0.1:{port}"

    # While the cases run.
    with running_server(store, port=port) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "validation.cli", "check", "--json"],
            cwd=project.root,
            env=project.environment(GOLDEN_MLFLOW="1", MLFLOW_TRACKING_URI=address),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if "[2/2]" in line:
                break
        assert server.process is not None
        kill(server.process)
        out, err = process.communicate(timeout=120)
    check_of_its_own(project, folders, process.returncode, out, err, expected)

    # While the run is written.
    with running_server(store, port=port) as server:
        assert server.process is not None
        with killing_proxy(port, server.process, REQUESTS_BEFORE_DEATH) as proxy:
            through = f"http://127.0.0.1:{proxy}"
            answer = project.golden(
                "check", "--json", GOLDEN_MLFLOW="1", MLFLOW_TRACKING_URI=through
            )
        assert server.process.poll() is not None
    check_of_its_own(project, folders, answer.code, answer.out, answer.err, expected)
    with quiet_client():
        with running_server(store, port=port):  # it is back
            half = held(Store(uri=address, artifacts=None))
            assert any("lm_loss" in run["metrics"] for run in half.values())
            assert all(run["status"] == "RUNNING" for run in half.values())
            variables = {"MLFLOW_TRACKING_URI": address}
            sent = project.golden("publish", **variables)
            assert sent.code == 0, sent.out
            assert sent.out.endswith("3 sent, 0 still waiting\n")
            remote = Store(uri=address, artifacts=None)
            shown = held(remote)
            holds_what_is_on_disk(shown, sorted(folders))
            assert project.golden("publish", **variables).out == "0 sent, 0 still waiting\n"
            for folder in folders:  # and where the folders forgot that they were sent
                (folder / "publish.json").unlink()
            assert project.golden("publish", **variables).out.endswith("3 sent, 0 still waiting\n")
            assert held(remote) == shown
        # The same from the folders alone, in another store.
        other = resolve_store(str(tmp_path / "other" / "mlflow.db"))
        assert project.golden("publish", "--store", other.uri).code == 0
        assert held(other) == shown


def check_of_its_own(
    project: Any, folders: set[Path], code: int, out: str, err: str, expected: Any
) -> None:
    """The verdict is what it is without a server, and the run waits."""
    assert code == 0, err
    assert without_times(json.loads(out)) == expected
    assert "not logged to MLflow" in err
    folder = project.latest_run()
    assert folder not in folders
    folders.add(folder)
    assert json.loads((folder / "verdict.json").read_text()) == json.loads(out)
    (state,) = json.loads((folder / "publish.json").read_text())["stores"].values()
    assert state["sent"] is False
