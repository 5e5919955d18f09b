"""What a declared omission leaves out of a file."""

import pytest

from validation.cases import CaseError
from validation.coverage.omissions import omitted_lines

_SOURCE = """\
class Layer:
    def forward(self, x):
        if x.is_cuda:  # a card
            y = fused(x)
            return y
        elif x.is_wide:
            z = 1
        else:
            z = 2
        with timer():
            z += 1
        z = compute(
            x,
        )
        return z

    def other(self, x):
        if x.is_cuda:
            return 1
        return 2
"""


@pytest.mark.parametrize(
    ("inside", "lines"),
    [
        ("Layer.forward", range(3, 16)),
        ("Layer", range(2, 21)),
        ("Layer.forward:if x.is_cuda:", (4, 5)),
        ("Layer.forward:elif x.is_wide:", (7,)),
        ("Layer.forward:with timer():", (11,)),
        ("Layer.forward:z = compute(", (12, 13, 14)),
        ("Layer.forward:return z", (15,)),
        ("Layer.other:if x.is_cuda:", (19,)),
    ],
)
def test_lines_of_an_omission(inside: str, lines: range | tuple[int, ...]) -> None:
    assert omitted_lines(_SOURCE, inside, f"a.py:{inside}") == set(lines)


def test_of_a_method_nothing_of_another_one_is_taken() -> None:
    with pytest.raises(CaseError, match=r"a\.py:forward.*no function or class 'forward'"):
        omitted_lines(_SOURCE, "forward", "a.py:forward")


def test_a_statement_is_its_whole_line() -> None:
    for statement in ("if x.is_cud", "if x.is_cuda: # a card", "z"):
        with pytest.raises(CaseError, match="begins with the line"):
            omitted_lines(_SOURCE, f"Layer.forward:{statement}", "a.py")
