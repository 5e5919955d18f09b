"""Sends run folders to MLflow, once each, however often and from wherever it is asked.

A run's key is a digest of its evidence (verdict and traces, or a benchmark's blocks), so that
publishing again finds what is there, completes what a dead server left half-written, and adds
nothing twice.  A run that cannot be sent stays where it is; `publish.json` in its folder says why,
and `golden publish` tries again.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from validation.files import decode_json, read_file, write_atomically
from validation.run_folder import BENCH_FILE, VERDICT_FILE
from validation.tracking.bench import read_bench
from validation.tracking.folder import read_check
from validation.tracking.record import CheckRecord, RunRecord, safe_name, safe_value
from validation.tracking.store import (
    TRACKING_URI_VARIABLE,
    Store,
    quiet_client,
    require_mlflow,
    resolve_store,
)
from validation.tracking.trouble import TrackingError, trouble_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STATE_FILE = "publish.json"
_LOCK_FILE = ".publish.lock"
_KEY_TAG = "golden.key"
_COMPLETE_TAG = "golden.complete"
# MLflow's pages otherwise open on the traces of language-model calls.
_EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "Golden checks and benchmarks of one lane: a run each, a nested run per "
    "case.",
}
_METRICS_PER_BATCH = 500
_ENTRIES_PER_BATCH = 90


@dataclass(frozen=True)
class PublishResult:
    """What became of one run folder.

    Attributes:
        run_dir: the folder.
        store: URI of the store it was meant for.
        sent: whether the store holds the whole run now.
        run_id: MLflow's id of the check's run, None when not sent.
        message: what happened, for the user; the reason when it was not sent.
    """

    run_dir: Path
    store: str
    sent: bool
    run_id: str | None
    message: str


def publish_run(run_dir: Path, *, store: str | None = None) -> PublishResult:
    """Sends one run folder to the store; never raises for what the store or MLflow does.

    Args:
        run_dir: a run folder (`runs/<time>-<lane>-<source digest>`).
        store: tracking URI; None follows `MLFLOW_TRACKING_URI`, else the project's own store.

    Returns:
        Whether it was sent.  A failure is also kept in the folder, for `pending`.
    """
    try:
        target = resolve_store(store)
    except TrackingError as error:
        named = store or os.environ.get(TRACKING_URI_VARIABLE, "")
        return PublishResult(run_dir, named, False, None, str(error))
    try:
        record = read_run(run_dir)
    except (OSError, ValueError) as error:
        return PublishResult(run_dir, target.uri, False, None, f"not a readable run: {error}")
    try:
        refuse_troubled(target)
        with filelock.FileLock(run_dir / _LOCK_FILE, timeout=60), quiet_client():
            run_id = send(record, target)
    except Exception as error:  # whatever a store, its driver or a server can raise
        reason = _reason(error)
        result = PublishResult(
            run_dir,
            target.uri,
            False,
            None,
            f"{target.uri} cannot be written: {reason}",
        )
    else:
        result = PublishResult(
            run_dir, target.uri, True, run_id, f"published to {target.uri} as run {run_id}"
        )
    _write_state(result)
    return result


def refuse_troubled(store: Store) -> None:
    """Refuses a store that cannot be used, before MLflow tries it again and again.

    Args:
        store: the store.

    Raises:
        TrackingError: why not.
    """
    require_mlflow()
    trouble = trouble_of(store.uri, store.database)
    if trouble:
        raise TrackingError(trouble)


def read_run(run_dir: Path) -> CheckRecord:
    """Reads the MLflow runs of a run folder, a check's or a benchmark's.

    Args:
        run_dir: the run folder.

    Returns:
        The run to send, with nested ones of the cases.

    Raises:
        DamagedFileError: a file of it is missing or damaged.
    """
    return (read_bench if (run_dir / BENCH_FILE).exists() else read_check)(run_dir)


def pending(runs_dir: Path, *, store: str | None = None) -> list[Path]:
    """Lists the run folders that a store does not hold yet.

    Args:
        runs_dir: folder of run folders.
        store: as `resolve_store` takes it.

    Returns:
        The folders, oldest first.

    Raises:
        TrackingError: `store` names no store.
    """
    target = resolve_store(store).uri
    files = (VERDICT_FILE, BENCH_FILE)
    folders = {path.parent for name in files for path in runs_dir.glob(f"*/{name}")}
    return [
        folder
        for folder in sorted(folders)
        if _state(folder).get(target, {}).get("sent") is not True
    ]


def send(check: CheckRecord, store: Store) -> str:
    """Writes a check to a store.

    Args:
        check: the run to send.
        store: receives it.

    Returns:
        MLflow's id of its run.

    Raises:
        Exception: Whatever MLflow raises when the store cannot be reached or written.
    """
    client = store.client()
    experiment = _experiment(client, check.experiment, store)
    parent = _own_run(client, experiment, check.parent, check.started_ms, {})
    if parent.data.tags.get(_COMPLETE_TAG) == "true":
        return str(parent.info.run_id)
    changes = _changes_since_pass(client, experiment, check)
    parent_tag = {"mlflow.parentRunId": parent.info.run_id}
    for case in check.cases:
        nested = _own_run(client, experiment, case, check.started_ms, parent_tag)
        # A golden has no verdict.
        passed = case.tags.get("golden.verdict", "PASS") == "PASS"
        _fill(client, nested, case, check, passed=passed)
    _fill(client, parent, check.parent, check, passed=check.passed, more_tags=changes)
    return str(parent.info.run_id)


def _experiment(client: "MlflowClient", name: str, store: Store) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if store.artifacts is not None:
            location = (store.artifacts / safe_name(name)).as_uri()
        try:
            return str(
                client.create_experiment(
                    name, artifact_location=location, tags=dict(_EXPERIMENT_TAGS)
                )
            )
        except MlflowException:
            # Another publisher made it between the two calls.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _own_run(
    client: "MlflowClient",
    experiment: str,
    record: RunRecord,
    started_ms: int,
    tags: dict[str, str],
) -> "Run":
    """Returns the record's run, creating it; of several (a reply lost on its way) one remains."""
    runs = _by_key(client, experiment, record.key)
    if not runs:
        client.create_run(
            experiment,
            start_time=started_ms,
            run_name=record.name,
            tags={_KEY_TAG: record.key, **tags},
        )
        runs = _by_key(client, experiment, record.key)
    if not runs:
        raise TrackingError(f"the store did not keep run {record.name!r}")
    complete = [run for run in runs if run.data.tags.get(_COMPLETE_TAG) == "true"]
    kept = (complete or runs)[0]
    for run in runs:
        if run.info.run_id != kept.info.run_id:
            client.delete_run(run.info.run_id)
    return kept


def _by_key(client: "MlflowClient", experiment: str, key: str) -> "list[Run]":
    found = client.search_runs(
        [experiment], filter_string=f"tags.\"{_KEY_TAG}\" = '{key}'", max_results=50
    )
    return sorted(found, key=lambda run: run.info.run_id)


def _fill(
    client: "MlflowClient",
    run: "Run",
    record: RunRecord,
    check: CheckRecord,
    *,
    passed: bool,
    more_tags: dict[str, str] | None = None,
) -> None:
    """Writes everything of one run; the tag that says it is complete comes last."""
    from mlflow.entities import Metric, Param, RunTag

    run_id = run.info.run_id
    if run.data.tags.get(_COMPLETE_TAG) == "true":
        return
    params = [Param(safe_name(k), safe_value(v)) for k, v in record.params.items()]
    for chunk in _chunks(params, _ENTRIES_PER_BATCH):
        client.log_batch(run_id, params=chunk)
    tags = {**record.tags, "mlflow.note.content": record.note, **(more_tags or {})}
    for tag_chunk in _chunks(list(tags.items()), _ENTRIES_PER_BATCH):
        client.log_batch(run_id, tags=[RunTag(safe_name(k), safe_value(v)) for k, v in tag_chunk])
    # The store keeps one row per (metric, timestamp, step, value), so that the timestamps of a
    # second attempt must be those of the first.
    metrics = [
        Metric(safe_name(m.name), m.value, check.started_ms + m.step, m.step)
        for m in record.metrics
    ]
    for metric_chunk in _chunks(metrics, _METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=metric_chunk)
    for path, folder in record.artifacts:
        if path.is_dir():
            client.log_artifacts(run_id, str(path), folder or None)
        elif path.is_file():
            client.log_artifact(run_id, str(path), folder or None)
    client.set_terminated(run_id, "FINISHED" if passed else "FAILED", end_time=check.ended_ms)
    client.set_tag(run_id, _COMPLETE_TAG, "true")


def _changes_since_pass(
    client: "MlflowClient", experiment: str, check: CheckRecord
) -> dict[str, str]:
    """Returns tags that say which parameters differ from the last passed run of its kind."""
    kind = check.parent.tags["golden.kind"]
    found = client.search_runs(
        [experiment],
        filter_string=(
            f"tags.\"golden.kind\" = '{kind}' and tags.\"golden.verdict\" = 'PASS' and "
            f"tags.\"{_COMPLETE_TAG}\" = 'true' and attributes.start_time < {check.started_ms}"
        ),
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    if not found:
        return {"golden.last_pass": "none"}
    before = found[0].data.params
    now = {safe_name(k): safe_value(v) for k, v in check.parent.params.items()}
    changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    tags = {
        "golden.last_pass": found[0].info.run_id,
        "golden.last_pass_commit": before.get("commit", "unknown"),
        "golden.changed": ", ".join(changed) or "nothing",
    }
    for name in changed:
        was, is_now = before.get(name, "(absent)"), now.get(name, "(absent)")
        tags[f"golden.changed.{name}"] = f"{was} -> {is_now}"
    return tags


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _reason(error: Exception) -> str:
    """Returns the first line of an error, without the driver's page of context."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _state(run_dir: Path) -> dict[str, Any]:
    """Returns what the folder remembers per store; nothing when it is damaged."""
    try:
        path = run_dir / STATE_FILE
        state = decode_json(read_file(path), path)
    except (OSError, ValueError):
        return {}
    stores = state.get("stores")
    return stores if isinstance(stores, dict) else {}


def _write_state(result: PublishResult) -> None:
    entry = {k: v for k, v in asdict(result).items() if k in ("sent", "run_id", "message")}
    stores = {**_state(result.run_dir), result.store: {**entry, "time": time.time()}}
    text = json.dumps({"schema": 1, "stores": stores}, indent=1) + "\n"
    try:
        write_atomically(result.run_dir / STATE_FILE, text.encode())
    except OSError:
        # A read-only folder forgets that it was sent; sending it again changes nothing.
        return
