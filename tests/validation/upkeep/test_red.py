"""A change that plants a bug and disarms the gate with it stays red before the base's gate."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from validation.compare import Tolerances
from validation.goldens import GoldenStore

VALIDATION = Path(__file__).resolve().parents[3] / "validation"


def plant(project: Any) -> None:
    """A real change of behaviour: every attention score is one per cent larger."""
    project.edit("WIDTH**-0.5", "WIDTH**-0.5 * 1.01")


def widen_the_tolerance(project: Any) -> None:
    """Tolerances so wide that nothing is beyond them."""
    store = GoldenStore(project.root / "goldens")
    golden = store.load("cpu", "plain_loss")
    wide = {name: dict.fromkeys(steps, 1e9) for name, steps in golden.tolerances.classes.items()}
    store.save(replace(golden, tolerances=Tolerances(wide)))


def delete_the_case(project: Any) -> None:
    """The case that would see it, its golden and its faults are gone."""
    text = (project.root / "plain_cases.py").read_text()
    first, second = text.index("    Case(\n"), text.rindex("    Case(\n")
    text = text[:first] + text[second:]
    text = text.replace('case="plain_loss"', 'case="plain_seed"')
    (project.root / "plain_cases.py").write_text(text)


def delete_the_case_and_its_golden(project: Any) -> None:
    """Nothing in the tree tells of the case any more."""
    delete_the_case(project)
    shutil.rmtree(project.root / "goldens/cpu/plain_loss")


def invert_the_comparator(project: Any) -> None:
    """The change's own copy of the gate finds no divergence in what diverges."""
    with (project.root / "validation/compare/compare.py").open("a") as file:
        file.write(
            "\n\n_honest = compare\n\n\n"
            "def compare(*words, **more):\n"
            "    import dataclasses\n"
            "    found = _honest(*words, **more)\n"
            "    return dataclasses.replace(found, divergences=[])\n"
        )


def quarantine_the_case(project: Any) -> None:
    """The case runs, and its FAIL does not count."""
    today = datetime.now(timezone.utc).date()
    entry = {
        "case": "plain_loss",
        "owner": "ada",
        "issue": "https://example.org/1",
        "added": str(today),
        "expires": str(today + timedelta(days=7)),
    }
    content = json.dumps({"schema": 1, "entries": [entry]})
    (project.root / "goldens/quarantine.json").write_text(content)


@pytest.mark.parametrize(
    ("disarm", "cases", "verdict"),
    [
        (widen_the_tolerance, ["plain_loss"], "INVALID"),
        (invert_the_comparator, ["plain_loss"], "FAIL"),
        (quarantine_the_case, ["plain_loss"], "FAIL"),
        (delete_the_case, ["plain_seed"], "INVALID"),
        (delete_the_case_and_its_golden, ["plain_seed"], "INVALID"),
    ],
)
def test_a_bug_with_a_disarmed_gate_stays_red(
    golden_project: Any, disarm: Callable[[Any], None], cases: list[str], verdict: str
) -> None:
    project = golden_project
    shutil.copytree(
        VALIDATION, project.root / "validation", ignore=shutil.ignore_patterns("__pycache__")
    )
    base = project.commit("the gate")
    plant(project)
    disarm(project)
    project.commit("a harmless refactor")
    answer = project.golden("check", *cases, "--judge", base, "--json")
    assert answer.code == {"FAIL": 1, "INVALID": 3}[verdict], answer.err
    assert answer.json()["verdict"] == verdict
