"""What is wrong with a store is said in a line, before MLflow tries it for minutes."""

import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from validation.tracking.store import Store, resolve_store
from validation.tracking.trouble import TrackingError, trouble_of


def _trouble(store: Store) -> str:
    return trouble_of(store.uri, store.database)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("file:/some/path", "/some/path/mlflow.db"),
        ("file:///some/path", "/some/path/mlflow.db"),
        ("file:relative", "relative/mlflow.db"),
        ("sqlite://", "sqlite:///RELATIVE.db"),
        ("sqlite:/x.db", "sqlite:///RELATIVE.db"),
        ("sqlite:///:memory:", "names no file"),
        ("http://", "names no server"),
        ("postgresql:///db", "names no server"),
        ("s3://bucket/x", "no store of 's3'"),
        ("name:x.db", "no store of 'name'"),
    ],
)
def test_what_names_no_store_is_refused(
    uri: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackingError) as caught:
        resolve_store(uri)
    assert str(caught.value).startswith(f"{uri}: ")
    assert says in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_database_says_why(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database")
    (tmp_path / "empty.db").write_bytes(b"")
    said = {
        name: _trouble(resolve_store(str(tmp_path / name)))
        for name in (".", "text", "text/x.db", "empty.db", "new/folder/x.db")
    }
    assert said["."] == f"it is a folder; name an SQLite file in it: {tmp_path / 'mlflow.db'}"
    assert said["text"] == "it is no SQLite database"
    assert said["text/x.db"] == f"{tmp_path / 'text'} is no folder"
    assert said["empty.db"] == said["new/folder/x.db"] == ""


def test_a_database_that_somebody_holds_is_named_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("validation.tracking.trouble._SECONDS", 0.1)
    path = tmp_path / "x.db"
    with sqlite3.connect(path) as holder:
        holder.execute("CREATE TABLE t (x)")
        holder.commit()
        holder.execute("BEGIN EXCLUSIVE")
        assert "locked" in _trouble(resolve_store(str(path)))
    holder.close()
    assert _trouble(resolve_store(str(path))) == ""


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "postgresql://u@127.0.0.1:9/db"])
def test_a_server_that_is_gone_is_found_at_once(uri: str) -> None:
    pytest.importorskip("requests")
    began = time.monotonic()
    assert "cannot be reached" in _trouble(Store(uri, None))
    assert time.monotonic() - began < 30


def test_databricks_is_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DATABRICKS_HOST", raising=False)
    store = resolve_store("databricks")
    assert store == Store("databricks", None)
    assert "DATABRICKS_HOST" in _trouble(store)


@pytest.mark.parametrize("uri", ["sqlite:///relative.db", "a file.db", "sqlite:///sub/new.db"])
def test_a_store_in_a_checkout_leaves_it_clean(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=tmp_path, capture_output=True, check=True)
        return done.stdout.decode()

    git("init", "-q")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        store = resolve_store(uri)
        store.prepare()
        assert store.database is not None
        assert store.artifacts is not None
        for path in (store.database, Path(f"{store.database}-journal"), store.artifacts / "a"):
            path.write_text("x")
        assert git("status", "--porcelain") == ""
    exclude = (tmp_path / ".git" / "info" / "exclude").read_text()
    assert exclude.count("/relative.db\n") == (uri == "sqlite:///relative.db")
    (tmp_path / "other.db").write_text("x")
    assert "other.db" in git("status", "--porcelain")
