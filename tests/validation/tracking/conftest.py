"""An empty, migrated MLflow store to copy: creating one takes MLflow seconds."""

from pathlib import Path

import pytest

from validation.tracking.store import quiet_client, resolve_store


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SQLite file of a store without runs."""
    pytest.importorskip("mlflow")
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    with quiet_client():
        resolve_store(str(path)).client().search_experiments()
    return path
