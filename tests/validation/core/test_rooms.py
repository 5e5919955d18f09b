"""The harness's modules and rooms import each other in one direction."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import validation

ROOT = Path(validation.__file__).parent


def modules() -> dict[str, Path]:
    """Every module of the package, by its name."""
    names = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        names[".".join(parts).removesuffix(".__init__")] = path
    return names


def imports(tree: ast.AST, known: Mapping[str, object]) -> set[str]:
    """Modules that a module imports: anywhere in it, and for type checkers alone, too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & known.keys()) or {str(node.module)}
    return found & known.keys()


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Names of a cycle, in its order; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def graph_of_modules() -> dict[str, set[str]]:
    known = modules()
    trees = {name: ast.parse(path.read_text()) for name, path in known.items()}
    return {name: imports(tree, known) - {name} for name, tree in trees.items()}


def test_no_module_imports_another_one_circularly() -> None:
    graph = graph_of_modules()
    assert len(graph) > 100
    assert "validation.trace.model" in graph["validation.compare.compare"]
    assert cycle(graph) == []


def test_no_room_imports_another_one_circularly() -> None:
    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    rooms: dict[str, set[str]] = {}
    for module, imported in graph_of_modules().items():
        rooms.setdefault(room(module), set()).update({room(name) for name in imported})
    assert cycle({name: imported - {name} for name, imported in rooms.items()}) == []


def test_an_import_in_a_function_or_for_types_makes_a_cycle() -> None:
    known = {"validation.a": None, "validation.b": None}
    one = ast.parse("def f():\n    from validation import b\n")
    two = ast.parse("if TYPE_CHECKING:\n    from validation.a import A\n")
    graph = {"validation.a": imports(one, known), "validation.b": imports(two, known)}
    assert cycle(graph) in (
        ["validation.a", "validation.b", "validation.a"],
        ["validation.b", "validation.a", "validation.b"],
    )
