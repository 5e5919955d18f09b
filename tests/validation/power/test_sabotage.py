"""A sabotaged gate never says PASS: `golden check` as a process, its own functions broken."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

SABOTAGES = Path(__file__).with_name("sabotages.py")
INVALID, FAIL = ("INVALID", 3), ("FAIL", 1)
# The bug that the check plants moves facts, or numbers.
DISCRETE, FLOATING = "wide_window", "halved_gradient"


@pytest.mark.parametrize(
    ("sabotage", "expected", "canary"),
    [
        ("always_equal", INVALID, DISCRETE),  # the canary is not caught
        ("always_equal", INVALID, FLOATING),
        ("inverted_rule", FAIL, FLOATING),  # what is right is reported
        ("inverted_rule_quietly", INVALID, FLOATING),
        ("no_cases", INVALID, DISCRETE),
        ("no_cases_found", INVALID, DISCRETE),
        ("nothing_compared", INVALID, DISCRETE),
        ("misspelt_in_comparison", INVALID, DISCRETE),  # the gate is blind to a metric
        ("misspelt_in_golden", INVALID, DISCRETE),  # even a golden is not itself
        ("misspelt_in_recorder", FAIL, DISCRETE),
        ("canary_not_planted", INVALID, FLOATING),
        ("infinite_tolerance", INVALID, DISCRETE),
        ("tensors_ignored", INVALID, FLOATING),
    ],
)
def test_no_sabotage_passes(
    golden_project: Any, tmp_path: Path, sabotage: str, expected: tuple[str, int], canary: str
) -> None:
    project = golden_project
    other = {DISCRETE: FLOATING, FLOATING: DISCRETE}[canary]
    project.edit(f'id="{other}",', f'id="{other}", canary=False,', "plain_cases.py")
    answer = project.golden("check", "--json", **sabotaged(project, tmp_path, sabotage))
    verdict = answer.json()
    assert (verdict["verdict"], answer.code) == expected, (verdict, answer.err)


def test_a_sabotage_is_what_makes_the_difference(golden_project: Any, tmp_path: Path) -> None:
    variables = sabotaged(golden_project, tmp_path, "always_equal")
    del variables["SABOTAGE"]
    answer = golden_project.golden("check", "--json", **variables)
    assert (answer.json()["verdict"], answer.code) == ("PASS", 0), answer.err


def test_the_planted_bug_of_a_blind_gate_is_named(golden_project: Any, tmp_path: Path) -> None:
    words = sabotaged(golden_project, tmp_path, "canary_not_planted")
    answer = golden_project.golden("check", **words)
    assert answer.code == 3
    assert "the gate is blind to" in answer.out


def sabotaged(project: Any, folder: Path, name: str) -> dict[str, str]:
    """Variables under which every Python process of `golden` breaks itself as it starts."""
    site = folder / "sabotage"
    site.mkdir()
    shutil.copy(SABOTAGES, site / "sitecustomize.py")
    path = project.environment()["PYTHONPATH"]
    return {"PYTHONPATH": os.pathsep.join([str(site), path]), "SABOTAGE": name}
