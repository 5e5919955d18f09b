"""`pytest --golden` on somebody else's repository, as a process."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from validation.compare import Tolerances
from validation.goldens import GoldenStore


@pytest.fixture
def accepted(golden_project: Any) -> Any:
    """A repository whose goldens are accepted, and a unit test beside them."""
    (golden_project.root / "test_unit.py").write_text("def test_unit():\n    pass\n")
    golden_project.commit("A unit test")
    return golden_project


def run_pytest(project: Any, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:hypothesispytest",
            "-rA",
            *words,
        ],
        cwd=project.root,
        env=project.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout


def outcomes(text: str) -> dict[str, str]:
    """Outcome by item, from pytest's short summary."""
    found = re.findall(r"^(PASSED|FAILED|SKIPPED|ERROR) (\S+)", text, re.MULTILINE)
    return {name.rpartition("::")[2]: outcome for outcome, name in found}


def test_without_the_option_nothing_of_it_runs(accepted: Any) -> None:
    code, text = run_pytest(accepted)
    assert code == 0
    assert outcomes(text) == {"test_unit": "PASSED"}


def test_cases_are_items_beside_the_tests_and_can_be_chosen(accepted: Any) -> None:
    names = {"plain_loss", "plain_seed", "canary", "unused"}
    for words, expected in {
        (): {"test_unit", *names},
        ("-m", "golden", "-k", "seed"): {"plain_seed"},
    }.items():
        code, text = run_pytest(accepted, "--golden", "--collect-only", "-q", *words)
        assert code == 0
        collected = {line.rpartition("::")[2] for line in text.splitlines() if "::" in line}
        assert collected == expected


def test_all_pass_on_two_workers(accepted: Any) -> None:
    code, text = run_pytest(accepted, "--golden", "-n", "2")
    assert code == 0, text
    assert set(outcomes(text).values()) == {"PASSED"}
    assert len(outcomes(text)) == 5


def test_a_missing_an_unused_and_a_moved_golden_fail(accepted: Any) -> None:
    goldens = accepted.root / "goldens" / "cpu"
    shutil.copytree(goldens / "plain_loss", goldens / "of_no_case")
    shutil.rmtree(goldens / "plain_loss")
    accepted.edit("self.scale = WIDTH**-0.5", "self.scale = 1.1 * WIDTH**-0.5")
    code, text = run_pytest(accepted, "--golden", "-m", "golden", "-k", "not canary")
    assert code == 1
    assert outcomes(text) == {"plain_loss": "FAILED", "plain_seed": "FAILED", "unused": "FAILED"}
    assert "no golden; record one with `golden update plain_loss" in text
    assert re.search(r"goldens that no case of lane cpu claims, delete them:\n.*of_no_case", text)
    assert "first divergence: step 1" in text
    assert "Traceback" not in text
    runs = sorted((accepted.root / "runs").glob("*/verdict.json"))
    assert len(runs) >= 2


def test_exact_requires_what_a_tolerance_forgives(
    accepted: Any, measured_as: Callable[..., Any]
) -> None:
    store = GoldenStore(accepted.root / "goldens")
    golden = store.load("cpu", "plain_seed")
    wide = Tolerances({"curve:lm_loss": {1: 0.5}, "curve:grad_norm": {1: 0.5}})
    named = {e.key for e in golden.trace.events if e.floating and e.key.step}
    assert not named, "the case keeps no tensors of its steps"
    measured_as(store, golden, wide)
    accepted.edit("self.scale = WIDTH**-0.5", "self.scale = 1.1 * WIDTH**-0.5")
    chosen = ("--golden", "--golden-lane", "cpu", "-k", "plain_seed")
    assert run_pytest(accepted, *chosen)[0] == 0
    code, text = run_pytest(accepted, *chosen, "--golden-exact")
    assert code == 1
    assert outcomes(text) == {"plain_seed": "FAILED"}


def test_another_lane_has_its_own_items(accepted: Any) -> None:
    code, text = run_pytest(
        accepted, "--golden", "-m", "golden", "--golden-lane", "h200", "-k", "not unused"
    )
    assert code == 1
    assert outcomes(text) == {"canary": "FAILED"}
    assert "there is no golden that a planted bug could be compared with" in text
