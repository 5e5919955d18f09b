"""What a declared omission leaves out of a file: a function, a class, or a statement with its body.

    my_package/model.py:Attention.fused                 a function, or a class
    my_package/model.py:Attention.forward:if x.on_gpu:  a statement of it, as its line says

A statement that has a body (`if`, `with`, `for`) leaves out the body, not its condition, and not
what its `else` has; another one leaves out itself.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from validation.cases import CaseError

_Owner = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def omitted_lines(source: str, inside: str, entry: str) -> set[int]:
    """The lines that one omission leaves out.

    Args:
        source: of the file.
        inside: `Class.function`, or `Class.function:statement`; the statement is its first line
            without the indentation, and without a comment behind it.
        entry: the whole omission, for messages.

    Returns:
        Numbers of lines. Of a function or class all but its first line, which defines it.

    Raises:
        CaseError: nothing of the file is called so, or no statement reads like this.
    """
    name, _, statement = inside.partition(":")
    owners = [node for qualified, node in _owners(ast.parse(source)) if qualified == name]
    if not owners:
        raise CaseError(
            f"GATED omits {entry!r}: the file has no function or class {name!r}; write it with its "
            "classes, as Class.function"
        )
    if not statement:
        return {line for owner in owners for line in _body(owner.body)}
    texts = source.splitlines()
    found: set[int] = set()
    for owner in owners:
        for node in ast.walk(owner):
            if isinstance(node, ast.stmt) and _reads(texts[node.lineno - 1], statement):
                body = getattr(node, "body", None)
                found |= set(range(node.lineno, _end(node) + 1)) if body is None else _body(body)
    if not found:
        raise CaseError(
            f"GATED omits {entry!r}: no statement of {name} begins with the line {statement!r}"
        )
    return found


def _owners(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, _Owner]]:
    """Every function and class, by its qualified name without `<locals>`, as coverage.py's."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _Owner):
            yield f"{prefix}{node.name}", node
            yield from _owners(node, f"{prefix}{node.name}.")
        else:
            yield from _owners(node, prefix)


def _body(statements: list[ast.stmt]) -> set[int]:
    return set(range(statements[0].lineno, _end(statements[-1]) + 1))


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _reads(line: str, statement: str) -> bool:
    """Whether a line of the file is the statement, whatever comment follows it."""
    text = line.strip()
    return text == statement or text.startswith((f"{statement}  #", f"{statement} #"))
