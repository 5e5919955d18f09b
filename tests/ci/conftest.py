"""The small project that the harness's tests use, for the scripts' tests too."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

# The scripts in ci/ are run as files, which see each other.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "ci"))

_NAME = "validation_conftest_of_tests"
_SPEC = importlib.util.spec_from_file_location(
    _NAME, Path(__file__).resolve().parents[1] / "validation" / "conftest.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules[_NAME] = _MODULE
_SPEC.loader.exec_module(_MODULE)

plain_project = _MODULE.plain_project
_golden_template = _MODULE._golden_template
golden_project = _MODULE.golden_project


@pytest.fixture
def project_type() -> Any:
    """The class of a repository that `golden` is run in."""
    return _MODULE._project_module().Project
