"""`golden dashboard`: MLflow's own pages on the published runs.

A remote store already has a server: its address is printed.  For the embedded
SQLite store a server is started on the loopback interface and ends with the command.
"""

import collections
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from validation.tracking.store import Store, require_mlflow, resolve_store
from validation.tracking.trouble import TrackingError, trouble_of

_START_SECONDS = 90.0
_STOP_SECONDS = 10.0
_LOG_LINES = 15
# Otherwise MLflow shows the pages that it has for language-model calls.
_MODE = "workflowType=machine_learning"


@dataclass(frozen=True)
class Server:
    """A running MLflow server.

    Attributes:
        url: where its pages are.
        process: the server's process, None when the store has a server of its own.
    """

    url: str
    process: subprocess.Popen[bytes] | None


def free_port(host: str = "127.0.0.1") -> int:
    """Returns a TCP port of `host` that is free now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


@contextmanager
def running_server(
    store: Store, *, host: str = "127.0.0.1", port: int = 0, start_seconds: float = _START_SECONDS
) -> Iterator[Server]:
    """Serves `store` until the context ends.

    Args:
        store: what to serve.
        host: interface to listen on.
        port: port to listen on; 0 takes a free one.
        start_seconds: how long the server may take to answer.

    Raises:
        TrackingError: The server did not come up; the message ends with what it said.
    """
    if store.is_remote:
        yield Server(url=store.uri, process=None)
        return
    require_mlflow()
    trouble = trouble_of(store.uri, store.database)
    if trouble:
        raise TrackingError(f"the MLflow server did not start: {store.uri}: {trouble}")
    store.prepare()
    port = port or free_port(host)
    url = f"http://{host}:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    if store.artifacts is not None:
        command += ["--artifacts-destination", store.artifacts.as_uri()]
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # The job runner serves LLM evaluation, and costs a second server's memory.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",
    }
    # Its own session, so that Ctrl-C reaches it once, through us, and its workers go with it.
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    log = _Drain(process)
    try:
        _await_health(url, process, log, time.monotonic() + start_seconds)
        yield Server(url=url, process=process)
    finally:
        _stop(process)


def serve(
    store: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    open_browser: bool = True,
    announce: Callable[[str], None] = print,
) -> int:
    """Opens MLflow on the published runs and stays until Ctrl-C.

    Args:
        store: tracking URI; None follows `resolve_store`.
        host: interface to listen on; the loopback by default, since MLflow has no login.
        port: Port; 0 takes a free one.
        open_browser: whether to open the user's browser at the address.
        announce: receives the lines for the user.

    Returns:
        The exit status, 0 after Ctrl-C.

    Raises:
        TrackingError: the server ended by itself.
    """
    target = resolve_store(store)
    try:
        with _ending_on_signals(), running_server(target, host=host, port=port) as server:
            page = _landing_page(server.url)
            announce(f"MLflow: {page}")
            if open_browser:
                webbrowser.open(page)
            if server.process is None:
                return 0
            announce("Press Ctrl-C to stop.")
            status = server.process.wait()
    except KeyboardInterrupt:
        announce("stopped")
        return 0
    raise TrackingError(f"the MLflow server ended by itself with status {status}")


def _landing_page(url: str) -> str:
    """Returns the page of the lane's checks when there is one lane, else the list of lanes."""
    query = urllib.parse.urlencode({"max_results": 100, "filter": "name LIKE 'golden/%'"})
    try:
        with urllib.request.urlopen(  # noqa: S310
            f"{url}/api/2.0/mlflow/experiments/search?{query}", timeout=10
        ) as answer:
            lanes = json.load(answer).get("experiments", [])
    except (OSError, ValueError):
        return url
    if len(lanes) == 1:
        return f"{url}/#/experiments/{int(lanes[0]['experiment_id'])}/runs?{_MODE}"
    return f"{url}/#/experiments?{_MODE}"


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Lets SIGTERM, and SIGINT where a shell had it ignored, end the command as Ctrl-C does.

    The server is a session of its own and would otherwise be left behind.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = {s: signal.signal(s, interrupt) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Drain:
    """Reads a process's output so that it never blocks, and keeps the last lines."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.lines: collections.deque[str] = collections.deque(maxlen=_LOG_LINES)
        self._pipe = process.stdout
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._pipe is not None
        for line in self._pipe:
            self.lines.append(line.decode("utf-8", "replace").rstrip())

    def text(self) -> str:
        self._thread.join(timeout=1.0)
        return "\n".join(self.lines)


def _await_health(url: str, process: subprocess.Popen[bytes], log: _Drain, deadline: float) -> None:
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise TrackingError(f"the MLflow server did not start:\n{log.text()}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:  # noqa: S310
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TrackingError(f"the MLflow server did not answer at {url} in time")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its workers: ask first, then insist."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        try:
            os.killpg(process.pid, signal_number)
            process.wait(timeout=_STOP_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
