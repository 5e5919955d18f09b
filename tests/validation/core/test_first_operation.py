"""`golden explain --ops`: the first operation whose bits differ between two runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from validation.diagnosis.first_operation import (
    FEWER,
    MISSING,
    MORE,
    NEW,
    OPERANDS,
    RESULT,
    FirstOperation,
    first_difference,
    read,
)
from validation.diagnosis.operation_log import FOLDER, log_file, logged

pytest.importorskip("torch")

Line = tuple[str, list[str], list[str]]
SAME: list[Line] = [("aten.mul", ["a"], ["b"]), ("aten.sum", ["b"], ["c"])]


def difference(base: list[Line], head: list[Line], folder: Path) -> FirstOperation | None:
    for name, lines in (("base", base), ("head", head)):
        text = [json.dumps([n, "model.py:3", "", ins, outs, ["f32[1]"]]) for n, ins, outs in lines]
        (folder / name).write_text("".join(line + "\n" for line in text))
    return first_difference(folder / "base", folder / "head", 0)[0]


def test_equal_logs_have_no_difference(tmp_path: Path) -> None:
    assert difference(SAME, SAME, tmp_path) is None


@pytest.mark.parametrize(
    ("head", "number", "why"),
    [
        ([SAME[0], ("aten.sum", ["b"], ["d"])], 2, RESULT),
        ([("aten.mul", ["z"], ["b"]), SAME[1]], 1, OPERANDS),
        # A clock is read first: what it leads to differs in its operands, the sum does not.
        ([("aten.mul", ["z"], ["y"]), ("aten.sum", ["b"], ["d"])], 2, RESULT),
        ([*SAME, ("aten.exp", ["c"], ["d"])], 3, MORE),
        (SAME[:1], 2, FEWER),
        # A view of the same numbers is no answer; the sum of other ones is.
        (
            [("aten.mul", ["a"], ["b"]), ("aten.t", ["b"], ["b"]), ("aten.sum", ["b"], ["d"])],
            3,
            NEW,
        ),
        ([("aten.t", ["a"], ["b"])], 2, MISSING),
    ],
)
def test_the_first_difference_is_named(
    head: list[Line], number: int, why: str, tmp_path: Path
) -> None:
    found = difference(SAME, head, tmp_path)
    assert found is not None
    assert (found.number, found.why) == (number, why)


def test_two_settings_are_compared_operation_by_operation(plain_project: Any) -> None:
    words = ("explain", "--ops", "plain_loss", "--steps", "1")
    assert plain_project.golden(*words, "--set", "GREETING=hello").code == 0
    answer = plain_project.golden(*words, "--set", "ATEN_CPU_CAPABILITY=default", "--json")
    first = answer.json()["first"]
    if first is None:  # this machine's vector instructions sum in the same order
        assert answer.code == 0
    else:
        assert answer.code == 1
        assert first["why"] == RESULT
        assert first["operation"]["place"].startswith("plain_loop.py:")


@pytest.mark.parametrize(
    ("old", "new", "name", "line"),
    [
        ("WIDTH**-0.5", "WIDTH**-0.5 * (1 + 1e-7)", "aten.mul", "plain_loop.py:25"),
        ("/ micro_batches\n", "/ micro_batches * 1.0000001\n", "aten.mul", "plain_loop.py:73"),
        ("start + stride *", "start + 1 + stride *", "aten.add", "plain_loop.py:56"),
        ("distance < WINDOW", "distance <= WINDOW", "aten.le", "plain_loop.py:39"),
    ],
)
def test_a_change_of_the_source_is_named_by_its_line(
    plain_project: Any, old: str, new: str, name: str, line: str
) -> None:
    plain_project.edit(old, new)
    words = ("explain", "--ops", "plain_loss", "--against", "HEAD", "--steps", "1")
    answer = plain_project.golden(*words, "--json")
    assert answer.code == 1, answer.err
    operation = answer.json()["first"]["operation"]
    assert operation["name"].startswith(name)
    assert operation["place"] == line
    said = plain_project.golden(*words).out
    assert name in said
    assert line in said


def test_the_backward_pass_is_named_by_the_line_it_is_the_gradient_of(plain_project: Any) -> None:
    (plain_project.root / "rates.py").write_text("GRADIENT = 1.0\n")
    plain_project.edit(
        "        return x + self.out",
        "        from rates import GRADIENT\n"
        "        scores = _Scaled.apply(scores, GRADIENT).clone()\n"
        "        return x + self.out",
    )
    plain_project.edit(
        "class Feed(",
        "class _Scaled(torch.autograd.Function):\n"
        "    @staticmethod\n"
        "    def forward(context, x, factor):\n"
        "        context.factor = factor\n"
        "        return x.view_as(x)\n"
        "\n"
        "    @staticmethod\n"
        "    def backward(context, gradient):\n"
        "        context.factor, factor = None, context.factor\n"
        "        return gradient * factor, None\n"
        "\n"
        "\n"
        "class Feed(",
    )
    plain_project.commit("A gradient with a factor")
    (plain_project.root / "rates.py").write_text("GRADIENT = 1.001\n")
    words = ("explain", "--ops", "plain_loss", "--against", "HEAD", "--steps", "1", "--json")
    operation = plain_project.golden(*words).json()["first"]["operation"]
    assert operation["name"].startswith("aten.mul")
    assert operation["place"] == "plain_loop.py:40"  # in the function's own backward


def test_what_autograd_does_is_placed_by_the_forward_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.chdir(Path(__file__).parent)
    x = torch.ones(3, requires_grad=True)
    with logged():
        y = x.exp()
        y.sum().backward()
    line = test_what_autograd_does_is_placed_by_the_forward_line.__code__.co_firstlineno + 9
    found = [(operation.name, operation.place) for operation in read(log_file(tmp_path, 0))]
    name = Path(__file__).name
    assert ("aten.exp.default", f"{name}:{line}") in found
    assert ("aten.mul.Tensor", f"backward of {name}:{line}") in found


def test_a_hook_is_named_by_its_own_line(plain_project: Any) -> None:
    plain_project.edit(
        "        return x + self.out",
        "        scores.register_hook(lambda gradient: gradient * (1 + 1e-6))\n"
        "        return x + self.out",
    )
    words = ("explain", "--ops", "plain_loss", "--against", "HEAD", "--steps", "1", "--json")
    operation = plain_project.golden(*words).json()["first"]["operation"]
    assert operation["name"].startswith("aten.mul")
    assert operation["place"] == "plain_loop.py:26"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ops", "plain_loss"), "--against REV"),
        (("--ops", "plain_loss", "--set", "X"), "--set X: write NAME=VALUE"),
        (("--ops", "plain_loss", "--set", "X=1", "--steps", "0"), "--steps 0"),
        (("--ops", "nobody", "--set", "X=1"), "nobody"),
        (("--ops", "plain_loss", "--against", "nowhere"), "--against nowhere"),
        (("runs/x", "--ops", "plain_loss", "--set", "X=1"), "leave out the run folder"),
        (("--set", "X=1"), "--set says nothing without --ops"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    plain_project: Any, words: tuple[str, ...], said: str
) -> None:
    answer = plain_project.golden("explain", *words)
    assert answer.code == 2
    assert said in answer.err
    assert "Traceback" not in answer.err
