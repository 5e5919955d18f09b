"""Imported by Python at the start of the processes of an instrumented run; see `instruments.py`.

Such a process need not be able to import `validation`: the instrument is loaded from its file.
"""

import importlib.util
import os
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


_file = os.environ.get("GOLDEN_INSTRUMENT")
if _file:
    _load(importlib.util.spec_from_file_location("_golden_instrument", _file)).begin()

# The next sitecustomize, of the user or of the system, has its turn. Those before this one have had
# theirs: they led here.
_here = str(Path(__file__).parent)
_after = sys.path[sys.path.index(_here) + 1 :] if _here in sys.path else []
_next = PathFinder.find_spec("sitecustomize", _after)
if _next is not None:
    _load(_next)
