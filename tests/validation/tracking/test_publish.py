"""Publishing is exact: whatever dies in the middle, nothing is lost and nothing is there twice."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from validation.tracking.dashboard import free_port, running_server
from validation.tracking.publish import send
from validation.tracking.record import CheckRecord, MetricPoint, RunRecord, safe_name
from validation.tracking.store import Store, quiet_client, resolve_store

mlflow = pytest.importorskip("mlflow")

WRITES = (
    "create_experiment",
    "create_run",
    "log_batch",
    "log_artifact",
    "log_artifacts",
    "set_terminated",
    "set_tag",
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_client():
        yield


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Store:
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    path.write_bytes(template.read_bytes())
    return resolve_store(str(path))


def check_record(
    folder: Path,
    *,
    key: str = "abc",
    verdict: str = "PASS",
    commit: str = "c0ffee",
    at: int = 1000,
    cases: tuple[str, ...] = ("dense", "moe"),
) -> CheckRecord:
    evidence = folder / "verdict.json"
    evidence.write_text('{"verdict": "PASS"}')
    traces = folder / "traces"
    (traces / "dense").mkdir(parents=True, exist_ok=True)
    (traces / "dense" / "curves.json").write_text("{}")
    records = [
        RunRecord(
            key=f"{key}/{name}",
            name=name,
            params={"case": name},
            tags={"golden.kind": "case", "golden.case": name, "golden.verdict": verdict},
            note="",
            metrics=[MetricPoint("lm_loss", 3.0 / s, s) for s in range(1, 701)],
        )
        for name in cases
    ]
    parent = RunRecord(
        key=key,
        name=f"check {key}",
        params={"commit": commit, "config_digest": "d1", "torch": "2.11.0"},
        tags={"golden.kind": "check", "golden.verdict": verdict},
        note="**PASS**",
        metrics=[MetricPoint("compared", 10.0)],
        artifacts=[(evidence, ""), (traces, "traces")],
    )
    return CheckRecord("golden/cpu", at, at + 500, verdict == "PASS", parent, records)


def contents(store: Store) -> dict[str, Any]:
    """Everything the store shows of its checks, without ids."""
    client = store.client()
    experiment = client.get_experiment_by_name("golden/cpu")
    runs = client.search_runs([experiment.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    seen: dict[str, Any] = {}
    for run in runs:
        assert run.info.run_name not in seen, "a run is there twice"
        tags = {k: v for k, v in run.data.tags.items() if k.startswith("golden.")}
        parent = run.data.tags.get("mlflow.parentRunId")
        seen[run.info.run_name] = {
            "status": run.info.status,
            "times": (run.info.start_time, run.info.end_time),
            "params": dict(run.data.params),
            "tags": tags,
            "parent": names.get(parent) if parent else None,
            "metrics": {
                key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
                for key in run.data.metrics
            },
            "artifacts": _artifacts(client, run.info.run_id, None),
        }
    return seen


def _artifacts(client: Any, run_id: str, folder: str | None) -> list[str]:
    found: list[str] = []
    for entry in client.list_artifacts(run_id, folder):
        found += _artifacts(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return sorted(found)


def test_a_check_is_a_run_with_a_nested_run_per_case(store: Store, tmp_path: Path) -> None:
    send(check_record(tmp_path), store)
    seen = contents(store)
    assert set(seen) == {"check abc", "dense", "moe"}
    parent = seen["check abc"]
    assert parent["status"] == "FINISHED"
    assert parent["times"] == (1000, 1500)
    assert parent["artifacts"] == ["traces/dense/curves.json", "verdict.json"]
    assert parent["params"]["commit"] == "c0ffee"
    for name in ("dense", "moe"):
        assert seen[name]["parent"] == "check abc"
        assert seen[name]["metrics"]["lm_loss"] == [(s, 3.0 / s) for s in range(1, 701)]


def test_publishing_again_changes_nothing(store: Store, tmp_path: Path) -> None:
    first = send(check_record(tmp_path), store)
    before = contents(store)
    assert send(check_record(tmp_path), store) == first
    assert contents(store) == before


class _Dying:
    """A client whose n-th write is done but never answered, or never done."""

    def __init__(self, client: Any, *, survives: int, after: bool) -> None:
        self._client, self._left, self._after = client, survives, after

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._client, name)
        if name not in WRITES:
            return real

        def write(*args: Any, **kwargs: Any) -> Any:
            if self._left > 0:
                self._left -= 1
                return real(*args, **kwargs)
            if self._after:
                real(*args, **kwargs)
            raise ConnectionError("the server is gone")

        return write


@pytest.mark.parametrize("after", [False, True], ids=["before-write", "after-write"])
def test_death_at_any_write_is_repaired_by_publishing_again(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    def fresh(name: str) -> Store:
        path = tmp_path / name / "mlflow.db"
        path.parent.mkdir()
        path.write_bytes(template.read_bytes())
        return resolve_store(str(path))

    record = check_record(tmp_path, cases=("dense",))
    whole = fresh("whole")
    send(record, whole)
    expected = contents(whole)
    real = Store.client
    deaths = 0
    for survives in range(100):
        store = fresh(f"death{survives}")
        with monkeypatch.context() as patch:
            patch.setattr(
                Store,
                "client",
                lambda self, n=survives: _Dying(real(self), survives=n, after=after),
            )
            try:
                send(record, store)
                break
            except ConnectionError:
                deaths += 1
        send(record, store)
        assert contents(store) == expected, f"after a death at write {survives}"
    assert deaths > 12


def test_runs_created_twice_by_a_lost_reply_become_one(store: Store, tmp_path: Path) -> None:
    client = store.client()
    experiment = client.create_experiment("golden/cpu")
    for _ in range(2):
        client.create_run(experiment, run_name="check abc", tags={"golden.key": "abc"})
    send(check_record(tmp_path), store)
    assert set(contents(store)) == {"check abc", "dense", "moe"}


def test_what_changed_since_the_last_pass_is_a_search(store: Store, tmp_path: Path) -> None:
    send(check_record(tmp_path, key="old", commit="a", at=1000), store)
    send(check_record(tmp_path, key="good", commit="b", at=2000), store)
    send(check_record(tmp_path, key="bad", commit="c", at=3000, verdict="FAIL"), store)
    client = store.client()
    experiment = client.get_experiment_by_name("golden/cpu").experiment_id
    (failed,) = client.search_runs(
        [experiment],
        "tags.\"golden.kind\" = 'check' and tags.\"golden.verdict\" = 'FAIL' "
        "and tags.\"golden.changed\" LIKE '%commit%'",
    )
    assert failed.info.run_name == "check bad"
    assert failed.info.status == "FAILED"
    assert failed.data.tags["golden.changed"] == "commit"
    assert failed.data.tags["golden.changed.commit"] == "b -> c"
    assert failed.data.tags["golden.last_pass_commit"] == "b"
    (oldest,) = client.search_runs([experiment], "tags.\"golden.last_pass\" = 'none'")
    assert oldest.info.run_name == "check old"


def test_a_server_killed_in_the_middle_gets_the_rest_later(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real MLflow server on loopback, killed with SIGKILL between two writes."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    record = check_record(tmp_path)
    port = free_port()
    remote = Store(uri=f"http://127.0.0.1:{port}", artifacts=None)
    real = Store.client
    with running_server(store, port=port) as server:
        assert server.process is not None
        pid = server.process.pid

        class Killing(_Dying):
            def __getattr__(self, name: str) -> Any:
                if name in WRITES and self._left == 0:
                    os.killpg(pid, signal.SIGKILL)
                    server.process.wait()  # type: ignore[union-attr]
                    self._left = -1
                if self._left < 0:
                    return getattr(self._client, name)
                return super().__getattr__(name)

        with monkeypatch.context() as patch:
            patch.setattr(
                Store, "client", lambda self: Killing(real(self), survives=5, after=False)
            )
            with pytest.raises(Exception, match=r"(?i)connection|max retries"):
                send(record, remote)
    with running_server(store, port=port):
        first = send(record, remote)
        assert send(record, remote) == first
        seen = contents(remote)
    assert set(seen) == {"check abc", "dense", "moe"}
    assert seen["dense"]["metrics"]["lm_loss"] == [(s, 3.0 / s) for s in range(1, 701)]
    assert seen["check abc"]["artifacts"] == ["traces/dense/curves.json", "verdict.json"]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("lm_loss", "lm_loss"),
        ("update_rms/normuon", "update_rms/normuon"),
        ("experts[3].load", "experts_3_.load"),
        ("../../etc/passwd", "etc/passwd"),
        ("/", "unnamed"),
        ("größe", "gr__e"),
    ],
)
def test_names_are_made_safe_for_the_store(name: str, safe: str) -> None:
    assert safe_name(name) == safe
