"""What is wrong with a store, found within seconds and said in a line.

MLflow tries ten times to open a database and says last what it saw last; a server that is gone it
asks for minutes.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import socket
import sqlite3
import urllib.parse
from pathlib import Path

SQLITE = "sqlite:///"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
# What MLflow keeps runs in: databases (also as DATABASE+DRIVER, with a usual port) and servers.
_DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_SERVERS = ("http", "https", "databricks", "databricks-uc")
_FORMS = (
    "a store is a path to an SQLite file, sqlite:///FILE, http(s)://SERVER, databricks, or "
    "postgresql://, mysql://, mssql:// and a database"
)
_SECONDS = 5.0
_MAGIC = b"SQLite format 3\0"


class TrackingError(RuntimeError):
    """The store cannot be used; the message says why and what to do."""


def scheme_of(uri: str) -> str:
    """The scheme of a URI, in small letters and without a driver; empty of a path."""
    found = _SCHEME.match(uri)
    return found[1].lower().partition("+")[0] if found else "databricks" * (uri == "databricks")


def refuse_uri(uri: str) -> None:
    """Refuses what is no URI of a store, as it is written.

    Args:
        uri: a tracking URI, or a path to an SQLite file.

    Raises:
        TrackingError: it is none; the message begins with it.
    """
    scheme = scheme_of(uri)
    if scheme == "file":
        folder = urllib.parse.unquote(re.sub(r"^file:(//)?", "", uri)) or "."
        raise TrackingError(
            f"{uri}: MLflow keeps runs in no folder of files any more; name an SQLite file: "
            f"{Path(folder) / 'mlflow.db'}"
        )
    if scheme == "sqlite":
        if not uri.startswith(SQLITE) or uri.removeprefix(SQLITE) in ("", ":memory:"):
            raise TrackingError(
                f"{uri}: names no file; write sqlite:///RELATIVE.db or sqlite:////ABSOLUTE.db"
            )
    elif scheme in _DATABASES or scheme in ("http", "https"):
        if not _host(uri):
            raise TrackingError(f"{uri}: names no server; write {scheme}://SERVER...")
    elif scheme and scheme not in _SERVERS and scheme not in _plugins():
        raise TrackingError(f"{uri}: MLflow has no store of {scheme!r}; {_FORMS}")


def _host(uri: str) -> str | None:
    try:
        return urllib.parse.urlsplit(uri).hostname
    except ValueError:
        return None


def _plugins() -> list[str]:
    return [point.name for point in importlib.metadata.entry_points(group="mlflow.tracking_store")]


def trouble_of(uri: str, database: Path | None) -> str:
    """Says why a store cannot be used now.

    Args:
        uri: tracking URI of the store.
        database: the file of an SQLite store; None of any other.

    Returns:
        The reason in one line; empty where nothing speaks against it.
    """
    if database is not None:
        return _trouble_of_file(database)
    scheme = scheme_of(uri)
    if scheme in ("http", "https"):
        return _trouble_of_server(uri)
    if scheme.startswith("databricks"):
        known = "DATABRICKS_HOST" in os.environ or (Path.home() / ".databrickscfg").exists()
        return "" if known else "neither DATABRICKS_HOST nor ~/.databrickscfg says where it is"
    return _trouble_of_database(uri) if scheme in _DATABASES else ""


def _trouble_of_file(database: Path) -> str:
    """Of an SQLite file, which need not exist yet."""
    if database.is_dir():
        return f"it is a folder; name an SQLite file in it: {database / 'mlflow.db'}"
    there = next(p for p in (database, *database.parents) if p.exists() or p.is_symlink())
    if there == database:
        return _trouble_of_content(database)
    if not there.is_dir():
        return f"{there} is no folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} is not for you to write in"


def _trouble_of_content(database: Path) -> str:
    try:
        if not database.is_file():
            return "it is no regular file"
        with database.open("rb") as file:
            begin = file.read(len(_MAGIC))
        if begin not in (b"", _MAGIC):
            return "it is no SQLite database"
        if not os.access(database, os.W_OK):
            return "it is not for you to write"
        address = f"file:{urllib.parse.quote(str(database))}?mode=rw"
        connection = sqlite3.connect(address, timeout=_SECONDS, uri=True)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
        finally:
            connection.close()
    except OSError as error:
        return error.strerror or str(error)
    except sqlite3.Error as error:
        return str(error)
    return ""


def _trouble_of_server(uri: str) -> str:
    """Of an HTTP server: any answer will do, MLflow says the rest."""
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=_SECONDS)
    except requests.exceptions.ReadTimeout:
        return f"the server does not answer within {_SECONDS:g} s"
    except requests.exceptions.ConnectTimeout:
        return f"the server cannot be reached within {_SECONDS:g} s"
    except requests.exceptions.SSLError:
        return ""  # somebody answers; which certificates to trust is a setting of MLflow's
    except requests.exceptions.RequestException as error:
        return f"the server cannot be reached: {_root_cause(error)}"
    return ""


def _trouble_of_database(uri: str) -> str:
    """Of a database server: first whether somebody listens, then whether it lets us in."""
    parts = urllib.parse.urlsplit(uri)
    port = parts.port or _DATABASES[scheme_of(uri)]
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_SECONDS).close()
    except OSError as error:
        return f"{parts.hostname}:{port} cannot be reached: {error.strerror or error}"
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(uri)
        with engine.connect():
            return ""
    except Exception as error:  # whatever a driver, or a missing one, can raise
        return _root_cause(error)


def _root_cause(error: BaseException) -> str:
    """What lies at the bottom of an error of a library that wraps others', in a line."""
    while True:
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return next((line for line in str(text).splitlines() if line.strip()), "unknown")[:300]
