"""MLflow gone, locked, refusing or silent: no verdict depends on it, no check waits for ever."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from benchmarks.chaos.attempt import LOST, WRONG, Attempt, Skipped
from benchmarks.chaos.oracle import (
    PASS,
    Before,
    judge_check,
    judge_order,
    judge_processes,
    judge_store,
)
from benchmarks.chaos.processes import golden

_WAYS = ("gone", "locked", "no database", "read-only", "refused", "silent", "garbage", "unknown")


def mlflow(attempt: Attempt) -> None:
    """A check whose run cannot be sent to MLflow passes, and its run stays to be sent later."""
    if importlib.util.find_spec("mlflow") is None:
        raise Skipped("MLflow is not installed")
    way = attempt.random.choice(_WAYS)
    state = attempt.states.calm
    root = state.copy(attempt.folder)
    before = Before(root)
    attempt.did = f"check: MLflow: {way}"
    with _disturbed(way, attempt.folder) as more:
        ended = golden(root, "check", GOLDEN_MLFLOW="1", **more)
    judge_check(attempt, ended, PASS)
    if "not logged to MLflow" not in ended.err:
        attempt.blame(WRONG, f"{ended.tail()}: does not say that the run was not sent")
    if len(list((root / "runs").glob("*/verdict.json"))) != 2:
        attempt.blame(LOST, "the run that could not be sent")
    judge_processes(attempt)
    judge_store(attempt, state, root, before)
    judge_order(attempt, root)


@contextlib.contextmanager
def _disturbed(way: str, folder: Path) -> Iterator[dict[str, str]]:
    """Variables that lead a check to a store in such a state."""
    with contextlib.ExitStack() as stack:
        database = folder / "mlflow.db"
        uri = f"sqlite:///{database}"
        if way == "gone":
            stub = folder / "stub" / "mlflow"
            stub.mkdir(parents=True)
            (stub / "__init__.py").write_text("raise ImportError('no mlflow here')\n")
            from benchmarks.chaos.processes import CHECKOUT

            yield {"PYTHONPATH": f"{stub.parent}:{CHECKOUT}"}
            return
        if way == "locked":
            connection = sqlite3.connect(database)
            stack.callback(connection.close)
            connection.executescript("PRAGMA journal_mode=DELETE; CREATE TABLE t (x);")
            connection.execute("BEGIN EXCLUSIVE")
        elif way == "no database":
            database.write_bytes(b"this is no database" * 99)
        elif way == "read-only":
            database = Path("/proc/mlflow/mlflow.db")
            uri = f"sqlite:///{database}"
        elif way == "unknown":
            uri = "nosuchscheme://somewhere/else"
        else:
            uri = f"http://127.0.0.1:{stack.enter_context(_server(way))}"
        yield {"MLFLOW_TRACKING_URI": uri}


@contextlib.contextmanager
def _server(way: str) -> Iterator[int]:
    """A port where nobody listens, where nobody answers, or where nonsense does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if way == "refused":
            server.close()
            yield port
            return
        ending = threading.Event()

        def serve() -> None:
            kept = []
            server.settimeout(0.1)
            while not ending.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    kept.append(connection)  # open, so that a silent one stays silent
                    if way == "garbage":
                        connection.recv(65536)
                        connection.sendall(b"\x00\xff not HTTP at all\r\n\r\n")
                        connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield port
        finally:
            ending.set()
            thread.join()


KINDS = {"mlflow": mlflow}
