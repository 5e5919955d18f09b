"""Somebody's repository whose training can be paced: steps that wait a known time."""

from typing import Any

import pytest

_LOOP = """\
import time
import torch
STEP = 0.004

def step():
    time.sleep(STEP)
    torch.zeros(4).add_(1)

def update():
    time.sleep(0.001)
"""
_PACE = """\
import contextlib
import paced_loop


def run(pacer, settings):
    pacer.describe(flops_per_token=1.0)
    while True:
        pacer.before_step()
        paced_loop.step()
        pacer.tokens(settings["tokens"])
        with pacer.optimizer():
            paced_loop.update()


@contextlib.contextmanager
def slow():
    paced_loop.STEP *= 1.5
    yield


def ends(pacer, settings):
    pacer.before_step()
"""
_CASES = """

CASES += [
    Case(
        name="paced",
        description="steps that wait",
        lanes=["cpu"],
        target="plain_cases:run",
        settings={"tokens": 8},
        throughput="paced:run",
    ),
]
THROUGHPUT_FAULTS = [
    Fault(
        id="slow",
        category="throughput",
        component="step",
        imitates="a slower kernel",
        plant="paced:slow",
        case="paced",
    ),
]
"""


@pytest.fixture
def paced_project(plain_project: Any) -> Any:
    """The plain repository with a case that `golden bench` can run, committed."""
    root = plain_project.root
    (root / "paced_loop.py").write_text(_LOOP)
    (root / "paced.py").write_text(_PACE)
    with (root / "plain_cases.py").open("a") as file:
        file.write(_CASES)
    plain_project.commit("A case that can be paced")
    return plain_project
