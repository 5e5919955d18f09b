"""What every test room shares: markers that skip visibly, and where things are."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# How long an example takes says nothing on a busy machine.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
# A runner in the background, as under nohup, ignores Ctrl-C, and what it starts would too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what this machine cannot run, with the reason."""
    torch = None
    if importlib.util.find_spec("torch") is not None:
        torch = importlib.import_module("torch")
    no_gpu = pytest.mark.skip(reason="needs a CUDA device")
    no_data = pytest.mark.skip(reason=f"needs the SYNTH rows in {SHARED_DATA}")
    for item in items:
        if item.get_closest_marker("gpu") and not (torch and torch.cuda.is_available()):
            item.add_marker(no_gpu)
        if item.get_closest_marker("shared_data") and not SHARED_DATA.is_dir():
            item.add_marker(no_data)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the SYNTH rows; ask for it together with the `shared_data` marker."""
    return SHARED_DATA


@pytest.fixture(scope="session")
def warm_runs(repository: Path) -> Callable[..., tuple[dict[str, Any], str]]:
    """Runs several trainings in one process, which imports Megatron once.

    The function takes a folder for the results, the flags of each training by its name and, where
    it is not the repository, the working directory; it returns the results by name and the log.
    """

    def run(
        folder: Path, flags: Mapping[str, Sequence[str]], cwd: Path = repository
    ) -> tuple[dict[str, Any], str]:
        plan = [
            {"flags": list(words), "out": str(folder / f"{name}.json")}
            for name, words in flags.items()
        ]
        (folder / "plan.json").write_text(json.dumps(plan))
        script = repository / "tests" / "pretrain" / "warm_runs.py"
        done = subprocess.run(
            [sys.executable, str(script), str(folder / "plan.json")],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(repository)},
            capture_output=True,
            text=True,
            check=False,
            timeout=1200,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        found = {name: json.loads((folder / f"{name}.json").read_text()) for name in flags}
        return found, done.stdout + done.stderr

    return run
