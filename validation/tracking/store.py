"""Where runs are published: an MLflow server, or an SQLite file inside the project.

`MLFLOW_TRACKING_URI` names the store; without it `mlruns/mlflow.db` under the project's root is
used and created on first use, with artifacts beside it. What is wrong with a store is found before
MLflow has it (`validation.tracking.trouble`), which would try again for minutes.
"""

import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from validation.files import write_atomically
from validation.running.source import RepositoryError, find_root, git
from validation.tracking.trouble import SQLITE, TrackingError, refuse_uri, scheme_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRACKING_URI_VARIABLE = "MLFLOW_TRACKING_URI"

# MLflow's defaults suit a long training job: seven retries with exponential waits hold a check
# for minutes when a server is down.  A run that is not sent now is sent later, so fail early.
_CLIENT_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    # stdout is the command's own: with --json one object and nothing else.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass(frozen=True)
class Store:
    """An MLflow tracking store.

    Attributes:
        uri: tracking URI, absolute when it is an SQLite file.
        artifacts: folder of the artifacts of an SQLite store; None when the store decides.
    """

    uri: str
    artifacts: Path | None

    @property
    def is_remote(self) -> bool:
        """Whether a server already serves this store."""
        return self.uri.startswith(("http://", "https://", "databricks"))

    @property
    def database(self) -> Path | None:
        """The file of an SQLite store."""
        if not self.uri.startswith(SQLITE):
            return None
        return Path(unquote(self.uri.removeprefix(SQLITE)))

    def client(self) -> "MlflowClient":
        """Returns a client of the store, creating an SQLite file on first use."""
        require_mlflow()
        import mlflow

        self.prepare()
        return mlflow.MlflowClient(tracking_uri=self.uri)

    def prepare(self) -> None:
        """Makes the folders of an SQLite store, hidden from git where they are in a checkout."""
        if self.artifacts is not None and self.database is not None:
            _make_ignored(self.database.parent)
            _hide_from_git(self.database, self.artifacts)
            self.artifacts.mkdir(parents=True, exist_ok=True)


def _make_ignored(folder: Path) -> None:
    """Creates the store's folder such that git does not see it: a run leaves the tree clean."""
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / ".gitignore").write_text("*\n")


def _hide_from_git(database: Path, artifacts: Path) -> None:
    """Makes this clone's git ignore a store that somebody keeps in a folder of the checkout."""
    try:
        root = find_root(database.parent)
        if not (database.resolve().is_relative_to(root) and _git_sees(root, database)):
            return
        exclude = root / git(root, "rev-parse", "--git-path", "info/exclude").strip()
        name, folder = (
            re.sub(r"([\\*?\[ ])", r"\\\1", p.resolve().relative_to(root).as_posix())
            for p in (database, artifacts)
        )
        text = exclude.read_text() if exclude.exists() else ""
        separator = "" if not text or text.endswith("\n") else "\n"
        lines = f"/{name}\n/{name}-*\n/{folder}/\n"
        write_atomically(exclude, f"{text}{separator}{lines}".encode())
    except (RepositoryError, OSError):
        return  # no checkout, or one whose git is out of reach: nothing is made dirty


def _git_sees(root: Path, path: Path) -> bool:
    try:
        git(root, "check-ignore", "--quiet", "--", str(path))
    except RepositoryError:
        return True
    return False


def project_root() -> Path:
    """Returns the repository around the working directory, else the working directory."""
    try:
        return find_root()
    except RepositoryError:
        return Path.cwd()


def resolve_store(uri: str | None = None) -> Store:
    """Resolves the store named by `uri`, else by `MLFLOW_TRACKING_URI`, else the project's own.

    Args:
        uri: a tracking URI, or a path to an SQLite file.

    Returns:
        The store, which need not exist yet.

    Raises:
        TrackingError: It names nothing that MLflow keeps runs in.
    """
    uri = uri or os.environ.get(TRACKING_URI_VARIABLE) or None
    if uri is None:
        database = project_root() / "mlruns" / "mlflow.db"
        return Store(f"{SQLITE}{database}", database.parent / "artifacts")
    refuse_uri(uri)
    if not scheme_of(uri):
        uri = f"{SQLITE}{uri}"
    if not uri.startswith(SQLITE):
        return Store(uri=uri, artifacts=None)
    database = Path(unquote(uri.removeprefix(SQLITE))).absolute()
    return Store(
        uri=f"{SQLITE}{database}",
        artifacts=database.with_name(f"{database.stem}-artifacts"),
    )


def require_mlflow() -> None:
    """Raise `TrackingError` with the command that installs MLflow when it is missing."""
    if importlib.util.find_spec("mlflow") is None:
        raise TrackingError("MLflow is not installed: pip install 'vpmoe-validation[tracking]'")


@contextmanager
def quiet_client() -> Iterator[None]:
    """Keeps MLflow off the network but for its store, quick to give up, and silent.

    Variables the user has set win.
    """
    added = {k: v for k, v in _CLIENT_DEFAULTS.items() if k not in os.environ}
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "urllib3")]
    levels = [logger.level for logger in loggers]
    os.environ.update(added)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in added:
            os.environ.pop(name, None)
