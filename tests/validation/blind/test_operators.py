"""Mutants of source text: what is changed, and what is left alone."""

import ast
import difflib
from pathlib import Path

import pytest

import validation
from validation.mutation.operators import edits, is_python

ROOT = Path(validation.__file__).parent


def changed(source: str, operator: str = "") -> list[str]:
    """What the mutants of a source have in place of its changed lines."""
    content = source.encode()
    found = []
    for edit in edits(content):
        if operator in ("", edit.operator):
            new = edit.applied(content).decode().splitlines()
            diff = difflib.ndiff(source.splitlines(), new)
            found.append(" ; ".join(text[2:].strip() for text in diff if text.startswith("+ ")))
    return found


@pytest.mark.parametrize(
    ("source", "operator", "expected"),
    [
        ("x = a + b * c", "operator", ["x = a - b * c", "x = a + b / c"]),
        ("x = a ** -b", "operator", ["x = a * -b", "x = a ** b"]),
        ("x = (a) + (b)", "operator", ["x = (a) - (b)"]),
        ("x = a and b or c", "operator", ["x = a or b or c", "x = a and b and c"]),
        ("x = a is not b", "operator", ["x = a is b"]),
        ("x = 'é' + b", "operator", ["x = 'é' - b"]),
        ("x += y", "operator", ["x -= y"]),
        ("x = a < b", "boundary", ["x = a <= b"]),
        ("x = a[b:c]", "boundary", ["x = a[(b) + 1:c]", "x = a[b:(c) + 1]"]),
        ("for i in range(n): f(i)", "boundary", ["for i in range((n) + 1): f(i)"]),
        ("x = [2, 0.5, 0.0, True]", "constant", ["x = [3, 0.5, 0.0, True]"]),
        ("if a:\n    f()", "condition", ["if not (a):"]),
        ("x = [a for a in b if a.c]", "condition", ["x = [a for a in b if not (a.c)]"]),
        ("x = a if b else c", "condition", ["x = a if not (b) else c"]),
        ("f(a, b, c=d)", "arguments", ["f(b, a, c=d)"]),
        ("f(a, a)", "arguments", []),
        ("f(*a, b)", "arguments", []),
        ("def f():\n    return g(1)", "returned", ["return"]),
        ("def f():\n    return None", "returned", []),
        ("self.x = y", "statement", ["pass"]),
        ("x = y", "statement", []),
        ("x = y\nx = g(x)", "statement", ["pass"]),
        ("for a in b:\n    break", "statement", ["pass"]),
    ],
)
def test_each_operator(source: str, operator: str, expected: list[str]) -> None:
    found = changed(source, operator)
    assert found[: len(expected)] == expected
    assert expected or not found


def test_a_name_of_a_block_has_no_value_before_it() -> None:
    assert changed("while a:\n    x = g()\n    x = h(x)", "statement") == ["pass"]
    assert len(changed("def f(x):\n    x = g(x)\n    y = x", "statement")) == 1


@pytest.mark.parametrize(
    "source",
    [
        '"""Text 1 + 1."""',
        "def f(x: int = g, y: Literal[1] = h) -> Literal[2]: ...",
        "raise ValueError(1 + 1)",
        "assert a < b, 1",
        "log.warning(a, b)",
        "print(1 + 1)",
        "x: Final[1] = y",
        "if TYPE_CHECKING:\n    x = 1",
        "if __name__ == '__main__':\n    main(1)",
        "from a import b",
        "x = f'{1 + 1}'",
        "x = 'text'",
        "__all__ = [a, b]",
    ],
)
def test_what_computes_nothing_is_left_alone(source: str) -> None:
    assert changed(source) == []


def test_an_edit_knows_its_statement_and_its_function() -> None:
    source = b"class A:\n    @b\n    def f(self, x=1):\n        return g(\n  x + 1,\n  )\n"
    found = {(e.operator, e.line, e.function) for e in edits(source)}
    assert ("constant", 3, "A") in found, "a default belongs to the line of the definition"
    assert ("operator", 4, "A.f") in found, "a statement of several lines has one"


def test_the_harness_itself_has_mutants_that_are_nearly_all_python() -> None:
    content = (ROOT / "compare" / "compare.py").read_bytes()
    found = edits(content)
    assert len(found) > 100
    assert len({(e.start, e.end, e.text) for e in found}) == len(found)
    bad = [e for e in found if not is_python(e.applied(content))]
    assert len(bad) < 0.02 * len(found), bad
    for edit in found[:50]:
        ast.parse(edit.applied(content))
