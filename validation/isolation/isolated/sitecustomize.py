"""Imported by Python at the start of the processes of a lane without GPUs; see `..`.

Such a process need not be able to import `validation`: the module is loaded from its file.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


def _load(spec: ModuleSpec | None) -> ModuleType:
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_here = Path(__file__).parent
_load(importlib.util.spec_from_file_location("_isolation", _here.parent / "__init__.py")).hide()

# The sitecustomize that this one stands before, of the user or of the system, has its turn.
_next = PathFinder.find_spec("sitecustomize", [entry for entry in sys.path if entry != str(_here)])
if _next is not None:
    _load(_next)
