"""`golden publish` and `golden dashboard`: runs in MLflow."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from validation.gate.verdict import USAGE_EXIT_CODE
from validation.running.source import find_root


def add_commands(commands: Any) -> None:
    """Adds the commands to the parser."""
    parser = commands.add_parser(
        "publish",
        help="send runs to MLflow that are not there yet",
        description="Sends the runs under runs/ that the MLflow store lacks. Sending twice adds "
        "nothing. The store is MLFLOW_TRACKING_URI, else mlruns/mlflow.db in this repository.",
    )
    parser.add_argument("--store", metavar="URI", help="another store")
    parser.set_defaults(func=publish)

    parser = commands.add_parser(
        "dashboard",
        help="open MLflow on the runs",
        description="Serves the embedded store on this machine and opens a browser; Ctrl-C ends "
        "it. With MLFLOW_TRACKING_URI, opens that server instead.",
    )
    parser.add_argument("--store", metavar="URI", help="another store")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.set_defaults(func=dashboard)


def publish(options: argparse.Namespace) -> int:
    """Sends what waits; returns 0, or 2 when something could not be sent."""
    from validation.tracking.publish import pending, publish_run, refuse_troubled
    from validation.tracking.store import resolve_store
    from validation.tracking.trouble import TrackingError

    root = find_root()
    try:
        waiting = pending(root / "runs", store=options.store)
        store = resolve_store(options.store)
    except TrackingError as error:
        print(f"golden publish: {error}", file=sys.stderr)
        return USAGE_EXIT_CODE
    try:
        refuse_troubled(store)
    except TrackingError as error:
        print(f"golden publish: {store.uri} cannot be written: {error}", file=sys.stderr)
        print(f"0 sent, {len(waiting)} still waiting")
        return USAGE_EXIT_CODE
    failed = 0
    for folder in waiting:
        outcome = publish_run(folder, store=options.store)
        print(f"{folder.name}: {outcome.message}")
        failed += not outcome.sent
    print(f"{len(waiting) - failed} sent, {failed} still waiting")
    return USAGE_EXIT_CODE if failed else 0


def dashboard(options: argparse.Namespace) -> int:
    """Serves until interrupted; returns 0."""
    from validation.tracking.dashboard import serve
    from validation.tracking.trouble import TrackingError

    try:
        serve(
            options.store,
            host=options.host,
            port=options.port,
            open_browser=not options.no_browser,
        )
    except TrackingError as error:
        print(f"golden dashboard: {error}", file=sys.stderr)
        return USAGE_EXIT_CODE
    return 0
