"""Fixtures of the harness's tests: somebody's repository with a plain PyTorch loop."""

import importlib.util
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from filelock import FileLock

from validation.calibration.derived import by_text, line_of
from validation.calibration.noise import FACTOR, floor_of
from validation.compare import Tolerances
from validation.goldens import Golden, GoldenStore
from validation.goldens.calibrated import GRAINS, RERUNS, write_calibration

HAS_TORCH = importlib.util.find_spec("torch") is not None


class WithoutTorch(pytest.Module):
    """A test module that cannot be imported here."""

    def collect(self) -> Any:
        """Skips the module, visibly."""
        pytest.skip("needs torch")


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module | None:
    """Skips the modules that import torch where it is not installed: the harness works without."""
    if HAS_TORCH or not re.search(r"^(import|from) torch\b", module_path.read_text(), re.MULTILINE):
        return None
    return WithoutTorch.from_parent(parent, path=module_path)


def _project_module() -> ModuleType:
    """`plain/project.py`, which is no importable package in pytest's importlib mode."""
    name = "plain_project_of_tests"
    if name not in sys.modules:
        path = Path(__file__).parent / "plain" / "project.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def plain_project(tmp_path: Path) -> Any:
    """A repository with cases and without goldens."""
    pytest.importorskip("torch", reason="the plain loop trains with torch")
    return _project_module().make_project(tmp_path)


@pytest.fixture(scope="session")
def _golden_template(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One repository with accepted, calibrated goldens, made once for all test processes."""
    pytest.importorskip("torch", reason="the plain loop trains with torch")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "golden-template"
    module = _project_module()
    with FileLock(shared / "golden-template.lock"):
        if not (folder / "done").exists():
            project = module.make_project(folder)
            for words in (
                ("update", "--reason", "the first goldens"),
                ("calibrate", "--runs", "5"),
            ):
                answer = project.golden(*words)
                assert answer.code == 0, answer.err
                project.commit(f"golden {words[0]}")
            (folder / "done").touch()
    return module.Project(folder / "repository")


@pytest.fixture
def golden_project(_golden_template: Any, tmp_path: Path) -> Any:
    """A repository of its own with accepted, calibrated and committed goldens."""
    return _golden_template.copy(tmp_path / "repository")


@pytest.fixture
def measured_as() -> Callable[..., Golden]:
    """Stores tolerances with a golden as if reruns had shown them: they follow, and are on file."""

    def measured_as(
        store: GoldenStore,
        golden: Golden,
        tolerances: Tolerances,
        reason: str = "another CPU",
        **stored: Any,
    ) -> Golden:
        floor = floor_of(0)
        grains = {
            name: {step: value - floor for step, value in steps.items()}
            for name, steps in tolerances.classes.items()
        }
        assert all(value >= 0.0 for steps in grains.values() for value in steps.values())
        line = {"name": "one", "machine": "", "trace": "a", "noise": line_of({}, tolerances)}
        calibration = {
            "runs": 8,
            "factor": FACTOR,
            "largest_sum": 0,
            "floor": floor,
            "noise": {},
            GRAINS: by_text(grains, tolerances),
            RERUNS: [line],
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **stored,
        }
        measured = replace(golden, tolerances=tolerances, calibration=calibration)
        write_calibration(store, golden, measured, reason)
        store.save(measured)
        return measured

    return measured_as
