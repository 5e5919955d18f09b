"""Outside vpmoe/megatron, vpMoE uses documented names of Megatron alone, and patches nothing."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest
import torch

import vpmoe
from vpmoe.megatron.documented import DOCUMENTED, OVERRIDDEN

ROOT = Path(vpmoe.__file__).parent
ROOM = ROOT / "megatron"
OUTSIDE = sorted(path for path in ROOT.rglob("*.py") if not path.is_relative_to(ROOM))
_MODULE = re.compile(r"megatron(\.\w+)+")


def offences(source: str) -> Iterator[str]:
    """What a module outside the room must not do, with its line."""
    tree = ast.parse(source)
    theirs: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "megatron":
                    yield f"{node.lineno}: imports the module {alias.name}"
                    theirs.add((alias.asname or alias.name).partition(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module.partition(".")[0] != "megatron":
                continue
            for alias in node.names:
                theirs.add(alias.asname or alias.name)
                if alias.name not in DOCUMENTED.get(node.module, ()):
                    yield f"{node.lineno}: imports {alias.name} from {node.module}"
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and _MODULE.fullmatch(node.value.replace(":", "."))
        ):
            yield f"{node.lineno}: names {node.value}"
    for node in ast.walk(tree):
        yield from _writes(node, theirs)


def _writes(node: ast.AST, theirs: set[str]) -> Iterator[str]:
    """Assignments to attributes of what was imported from Megatron, and private reads of it."""
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else None
        name = node.func.id if isinstance(node.func, ast.Name) else name
        writes = name in ("replaced", "setattr", "delattr") and bool(node.args)
        if writes and _root(node.args[0]) in theirs:
            yield f"{node.lineno}: {name}() on Megatron's {_root(node.args[0])}"
    elif isinstance(node, ast.Attribute) and _root(node) in theirs:
        if isinstance(node.ctx, ast.Store | ast.Del):
            yield f"{node.lineno}: sets {node.attr} of Megatron's {_root(node)}"
        elif node.attr.startswith("_") and not node.attr.endswith("__"):
            yield f"{node.lineno}: reads the private {node.attr} of Megatron's {_root(node)}"


def _root(node: ast.AST) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_internals_of_megatron_are_used_in_the_room_alone(path: Path) -> None:
    found = list(offences(path.read_text()))
    assert not found, "move it to vpmoe/megatron, under a contract"


@pytest.mark.parametrize(
    "source",
    [
        "import megatron.training.training as training",
        "import megatron",
        "from megatron.core.optimizer import _get_param_groups",
        "from megatron.core.utils import get_pg_size",
        "from megatron.training.training import training_log",
        "patched('megatron.training.training', 'train_step', wrap)",
        "TARGET = 'megatron.core.activations:squared_relu'",
        "from megatron.core import parallel_state\nparallel_state.get_x = None",
        "from megatron.core import parallel_state as p\nreplaced(p, 'get_x', None)",
        "from megatron.core.transformer.mlp import MLP\nsetattr(MLP, 'forward', None)",
        "from megatron.core import parallel_state\nparallel_state._GROUP",
        "def f():\n    from megatron.core.safe_globals import SAFE_GLOBALS",
    ],
)
def test_what_the_rule_finds(source: str) -> None:
    assert list(offences(source))


@pytest.mark.parametrize(
    "source",
    [
        "from megatron.core import parallel_state\nparallel_state.get_x()",
        "from megatron.training import get_args",
        "from vpmoe.megatron.helpers import get_pg_size",
        "print('megatron is a library; megatron.core too')",
        "replaced(sys, 'argv', [])",
    ],
)
def test_what_the_rule_permits(source: str) -> None:
    assert not list(offences(source))


def test_every_documented_name_is_there_and_used() -> None:
    used: set[tuple[str, str]] = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                used |= {(node.module, alias.name) for alias in node.names}
    for module, names in DOCUMENTED.items():
        for name in names:
            assert (module, name) in used, f"{name} of {module} is imported nowhere"
            parent = importlib.import_module(module)
            assert hasattr(parent, name) or importlib.import_module(f"{module}.{name}")


def _classes() -> Iterator[type]:
    """vpMoE's classes outside the room that extend one of Megatron's."""
    for info in pkgutil.walk_packages(vpmoe.__path__, "vpmoe."):
        if info.name.startswith("vpmoe.megatron"):
            continue
        for _, kind in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
            if kind.__module__ == info.name and any(_is_megatrons(base) for base in kind.__mro__):
                yield kind


def _is_megatrons(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "megatron"


def test_subclasses_override_and_call_documented_methods_alone() -> None:
    classes = list(_classes())
    assert len(classes) > 10
    used: set[tuple[str, str]] = set()
    for kind in classes:
        theirs = [base for base in kind.__mro__ if _is_megatrons(base)]
        for name, value in vars(kind).items():
            if not isinstance(value, FunctionType | staticmethod | classmethod | property):
                continue
            bases = {base.__name__ for base in theirs if name in vars(base)}
            if not bases or (name.startswith("__") and name != "__post_init__"):
                continue
            if hasattr(torch.nn.Module, name) and issubclass(kind, torch.nn.Module):
                continue  # torch's own, documented there
            permitted = {base for base in bases if name in OVERRIDDEN.get(base, ())}
            assert permitted, f"{kind.__name__} overrides {name} of {bases}"
            used |= {(base, name) for base in permitted}
        tree = ast.parse(Path(inspect.getfile(kind)).read_text())
        own = next(n for n in ast.walk(tree) if getattr(n, "name", None) == kind.__name__)
        for node in ast.walk(own):
            if (
                isinstance(node, ast.Attribute)
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
            ):
                found = [base for base in theirs if node.attr in vars(base)]
                ours = [b for b in kind.__mro__ if not _is_megatrons(b) and node.attr in vars(b)]
                assert ours or not found, f"{kind.__name__} uses {node.attr} of {found}"
    assert used == {(base, name) for base, names in OVERRIDDEN.items() for name in names}
