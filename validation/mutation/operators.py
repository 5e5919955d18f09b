"""Small changes of Python source that a test should notice, one at a time.

| operator | what it does |
| --- | --- |
| `operator` | `+` for `-`, `*` for `/`, `and` for `or`, `<` for `>=`, `is` for `is not`, no `-` |
| `boundary` | `<` for `<=`; a bound of a slice or of `range` one further |
| `constant` | a number one further or twice as large, `True` for `False` |
| `condition` | a condition negated: of `if`, `while`, a conditional expression, a comprehension |
| `statement` | a call, an assignment to a part or to a name that has a value, or a jump dropped |
| `arguments` | two neighbouring arguments of a call, both by place, swapped |
| `returned` | `return x` without the `x` |

The libraries that there are (mutmut, cosmic-ray) have neither dropped statements nor swapped
arguments, keep their operators internal, and run tests, not cases; these stand on `ast` alone.

What computes nothing is left alone: docstrings, annotations, what is raised, asserted or printed,
`if TYPE_CHECKING`, and `if __name__ == "__main__"`. A mutant is a change of text, so that its diff
reads like one.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

_BINARY: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.MatMult: ("@", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.BitXor: ("^", "&"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
}
_COMPARED: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", ">="),
    ast.LtE: ("<=", ">"),
    ast.Gt: (">", "<="),
    ast.GtE: (">=", "<"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
_BOUNDARIES: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
}
# Calls that tell somebody something.
_TOLD = {"print", "warn", "debug", "info", "warning", "error", "exception", "critical", "log"}


@dataclass(frozen=True)
class Edit:
    """A change of a file's text.

    Attributes:
        operator: which of the module's table.
        line: first line of the statement that it changes, as coverage.py counts.
        start: offset of the replaced bytes.
        end: offset after them.
        text: what stands there instead.
        function: qualified name of the function or class around it; empty at the top level.
    """

    operator: str
    line: int
    start: int
    end: int
    text: bytes
    function: str

    def applied(self, content: bytes) -> bytes:
        """The file with the change."""
        return content[: self.start] + self.text + content[self.end :]


def edits(content: bytes) -> list[Edit]:
    """Every edit of a file.

    Args:
        content: of the file, Python source.

    Returns:
        The edits, in the order of the file; the result of a few is no Python.

    Raises:
        SyntaxError: the file itself is not.
    """
    found: dict[tuple[int, int, bytes], Edit] = {}
    for edit in _Finder(content).of_block(ast.parse(content).body, "", set()):
        if edit.text != content[edit.start : edit.end]:
            found.setdefault((edit.start, edit.end, edit.text), edit)
    return [found[key] for key in sorted(found)]


def is_python(content: bytes) -> bool:
    """Whether a file compiles."""
    try:
        compile(content, "<mutant>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


class _Finder:
    """Walks statements, and the expressions of each."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        lengths = (len(line) for line in content.splitlines(keepends=True))
        self._starts = [0, *itertools.accumulate(lengths)]

    def of_block(self, body: list[ast.stmt], function: str, known: set[str]) -> Iterator[Edit]:
        """Edits of a block; `known` collects the names that have a value by then."""
        for node in body:
            yield from self._of_statement(node, function, known)

    def _of_statement(self, node: ast.stmt, function: str, known: set[str]) -> Iterator[Edit]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inside = f"{function}.{node.name}" if function else node.name
            if not isinstance(node, ast.ClassDef):
                for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
                    yield from self._of_expression(default, node.lineno, function)
                own = {a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)}
                yield from self.of_block(node.body, inside, own)
            else:
                yield from self.of_block(node.body, inside, set())
            return
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.Assert | ast.Global):
            return
        if isinstance(node, ast.Expr) and _tells(node.value):
            return
        if isinstance(node, ast.If) and _never_runs(node.test):
            yield from self.of_block(node.orelse, function, known)
            return
        yield from self._dropped(node, function, known)
        if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
            start, end = self._span(node)
            yield Edit("returned", node.lineno, start, end, b"return", function)
        if isinstance(node, ast.AugAssign):
            yield from self._swapped_sign(
                node.op, node.target, node.value, node.lineno, function, b"="
            )
        if isinstance(node, ast.If | ast.While):
            yield from self._negated(node.test, node.lineno, function)
        for child in _expressions(node):
            yield from self._of_expression(child, node.lineno, function)
        stored = (part for child in _headers(node) for part in ast.walk(child))
        known |= {n.id for n in stored if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for block in _blocks(node):
            yield from self.of_block(block, function, known)

    def _dropped(self, node: ast.stmt, function: str, known: set[str]) -> Iterator[Edit]:
        """A statement without which the code still runs."""
        if isinstance(node, ast.Expr):
            dropped = isinstance(node.value, ast.Call | ast.Await)
        elif isinstance(node, ast.Assign):
            dropped = all(
                not isinstance(part, ast.Name) or part.id in known
                for target in node.targets
                for part in (target.elts if isinstance(target, ast.Tuple) else [target])
            ) and not any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
        else:
            dropped = isinstance(node, ast.AugAssign | ast.Break | ast.Continue | ast.Delete)
        if dropped:
            start, end = self._span(node)
            yield Edit("statement", node.lineno, start, end, b"pass", function)

    def _of_expression(self, top: ast.expr, line: int, function: str) -> Iterator[Edit]:
        for node in _computing(top):
            if isinstance(node, ast.BinOp):
                yield from self._swapped_sign(node.op, node.left, node.right, line, function)
            elif isinstance(node, ast.BoolOp):
                before, after = (b"and", b"or") if isinstance(node.op, ast.And) else (b"or", b"and")
                for left, right in itertools.pairwise(node.values):
                    yield from self._between(left, right, before, after, "operator", line, function)
            elif isinstance(node, ast.Compare):
                sides = itertools.pairwise([node.left, *node.comparators])
                for op, (left, right) in zip(node.ops, sides, strict=True):
                    yield from self._compared(op, left, right, line, function)
            elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
                start, _ = self._span(node)
                inner, _ = self._span(node.operand)
                yield Edit("operator", line, start, inner, b"", function)
            elif isinstance(node, ast.IfExp):
                yield from self._negated(node.test, line, function)
            elif isinstance(node, ast.comprehension):
                for test in node.ifs:
                    yield from self._negated(test, line, function)
            elif isinstance(node, ast.Constant):
                yield from self._constant(node, line, function)
            elif isinstance(node, ast.Slice):
                for bound in filter(None, (node.lower, node.upper)):
                    yield from self._further(bound, line, function)
            elif isinstance(node, ast.Call):
                if isinstance(node.func, ast.Name) and node.func.id == "range":
                    for bound in node.args[:2]:
                        yield from self._further(bound, line, function)
                yield from self._swapped_arguments(node, line, function)

    def _swapped_sign(
        self,
        op: ast.operator,
        left: ast.expr,
        right: ast.expr,
        line: int,
        function: str,
        ending: bytes = b"",
    ) -> Iterator[Edit]:
        before, after = _BINARY[type(op)]
        texts = before.encode() + ending, after.encode() + ending
        yield from self._between(left, right, *texts, "operator", line, function)

    def _compared(
        self, op: ast.cmpop, left: ast.expr, right: ast.expr, line: int, function: str
    ) -> Iterator[Edit]:
        for table, operator in ((_COMPARED, "operator"), (_BOUNDARIES, "boundary")):
            if type(op) in table:
                before, after = table[type(op)]
                yield from self._between(
                    left, right, before.encode(), after.encode(), operator, line, function
                )

    def _between(
        self,
        left: ast.expr,
        right: ast.expr,
        before: bytes,
        after: bytes,
        operator: str,
        line: int,
        function: str,
    ) -> Iterator[Edit]:
        """Another sign between two operands, past brackets and comments."""
        _, start = self._span(left)
        end, _ = self._span(right)
        gap = self._content[start:end]
        if gap.count(before) == 1 and b"#" not in gap:
            place = start + gap.index(before)
            yield Edit(operator, line, place, place + len(before), after, function)

    def _negated(self, test: ast.expr, line: int, function: str) -> Iterator[Edit]:
        start, end = self._span(test)
        text = b"not (" + self._content[start:end] + b")"
        yield Edit("condition", line, start, end, text, function)

    def _constant(self, node: ast.Constant, line: int, function: str) -> Iterator[Edit]:
        value, (start, end) = node.value, self._span(node)
        if isinstance(value, bool):
            yield Edit("constant", line, start, end, str(not value).encode(), function)
        elif isinstance(value, int):
            yield Edit("constant", line, start, end, str(value + 1).encode(), function)
        elif isinstance(value, float):
            other = 2.0 * value if value else 1.0
            yield Edit("constant", line, start, end, repr(other).encode(), function)

    def _further(self, bound: ast.expr, line: int, function: str) -> Iterator[Edit]:
        """A bound one further; a number is the constants' to change."""
        if not isinstance(bound, ast.Constant):
            start, end = self._span(bound)
            text = b"(" + self._content[start:end] + b") + 1"
            yield Edit("boundary", line, start, end, text, function)

    def _swapped_arguments(self, node: ast.Call, line: int, function: str) -> Iterator[Edit]:
        given = [a for a in node.args if not isinstance(a, ast.Starred)]
        if len(given) != len(node.args):
            return
        for one, other in itertools.pairwise(given):
            (start, middle), (next_start, end) = self._span(one), self._span(other)
            texts = self._content[start:middle], self._content[next_start:end]
            if texts[0] != texts[1] and not any(isinstance(a, ast.GeneratorExp) for a in given):
                text = texts[1] + self._content[middle:next_start] + texts[0]
                yield Edit("arguments", line, start, end, text, function)

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self._starts[node.lineno - 1] + node.col_offset,
            self._starts[node.end_lineno - 1] + node.end_col_offset,
        )


def _expressions(node: ast.stmt) -> Iterator[ast.expr]:
    """A statement's own expressions that compute something."""
    annotation = node.annotation if isinstance(node, ast.AnnAssign) else None
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr) and child is not annotation:
            yield child
        elif isinstance(child, ast.withitem):
            yield child.context_expr


def _headers(node: ast.stmt) -> Iterator[ast.AST]:
    """A statement's own parts, without the statements inside of it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield child


def _computing(top: ast.AST) -> Iterator[ast.AST]:
    """An expression and those inside of it, but for text that is put together."""
    if isinstance(top, ast.JoinedStr):
        return
    yield top
    for child in ast.iter_child_nodes(top):
        yield from _computing(child)


def _blocks(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        yield getattr(node, name, [])
    for handler in getattr(node, "handlers", ()):
        yield handler.body
    for case in getattr(node, "cases", ()):
        yield case.body


def _tells(node: ast.expr) -> bool:
    """Whether an expression statement is text, or a call that tells somebody something."""
    if isinstance(node, ast.Constant):
        return True
    if not isinstance(node, ast.Call):
        return False
    name = node.func
    return getattr(name, "attr", getattr(name, "id", "")) in _TOLD


def _never_runs(test: ast.expr) -> bool:
    """Whether an `if` is for type checkers, or for a module that is run as a program."""
    names = {n.id for n in ast.walk(test) if isinstance(n, ast.Name)}
    names |= {n.attr for n in ast.walk(test) if isinstance(n, ast.Attribute)}
    return bool(names & {"TYPE_CHECKING", "__name__"})


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
