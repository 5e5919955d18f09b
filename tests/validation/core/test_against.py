"""`golden check --against REV`: base and head both run here; no golden, no tolerance."""

import json
from pathlib import Path
from typing import Any

import pytest

FLICKER = "total += loss.item() + __import__('time').time_ns() % 1000 * 1e-6"


@pytest.fixture
def project(plain_project: Any) -> Any:
    """Somebody's repository, without any golden."""
    return plain_project


def worktrees(project: Any) -> int:
    return len(project.git("worktree", "list").splitlines())


def test_an_unchanged_tree_is_identical_and_leaves_nothing_behind(project: Any) -> None:
    project.edit('"""A tiny', '"""A very tiny')  # what runs is the same
    answer = project.golden("check", "--against", "HEAD", "--json")
    assert answer.code == 0, answer.err
    verdict = answer.json()
    assert verdict["verdict"] == "PASS"
    assert verdict["message"].startswith("IDENTICAL: 2 cases of HEAD")
    assert (verdict["largest_ratio"], verdict["calibrated_here"]) == (0, None)
    assert verdict["canary"] == {"fault": "edited-trace", "caught": True}
    assert [case["case"] for case in verdict["cases"]] == ["plain_loss", "plain_seed"]
    assert all(0 < case["identical"] == case["compared"] for case in verdict["cases"])
    assert worktrees(project) == 1
    run = project.latest_run()
    assert (run / "base" / "plain_seed" / "trace.json").exists()
    assert (run / "traces" / "plain_seed" / "trace.json").exists()


@pytest.mark.parametrize(
    ("old", "new", "module"),
    [
        ("WIDTH**-0.5", "WIDTH**-0.5 * (1 + 1e-7)", "1.out"),
        ("total += loss.item()", "total += loss.item() * (1 + 1e-15)", "training"),
        ("(q @ k.transpose(1, 2) * self.scale)", "((q * self.scale) @ k.transpose(1, 2))", "1.out"),
    ],
)
def test_what_no_tolerance_would_see_fails_and_is_named(
    project: Any, old: str, new: str, module: str
) -> None:
    project.edit(old, new)
    words = ("check", "plain_loss", "--against", "HEAD", "--json")
    answer = project.golden(*words, "--report", "out", "--junit", "out/junit.xml")
    assert answer.code == 1, answer.err
    verdict = answer.json()
    (case,) = verdict["cases"]
    assert case["first_divergence"]["module"] == module
    assert case["first_divergence"]["tolerance"] == 0
    assert case["largest_ratio"] == "inf"
    assert module in verdict["message"]
    assert "the machine is no reason" in verdict["message"]
    assert module in (project.root / "out" / "report.html").read_text()
    assert "failure" in (project.root / "out" / "junit.xml").read_text()


def test_each_side_runs_its_own_code_in_a_source_folder_on_the_users_path(project: Any) -> None:
    (project.root / "src").mkdir()
    for name in ("plain_loop.py", "plain_cases.py"):
        project.git("mv", name, f"src/{name}")
    project.commit("A source folder")
    path = {"PYTHONPATH": "src:" + project.environment()["PYTHONPATH"]}
    assert project.golden("check", "plain_seed", "--against", "HEAD", **path).code == 0
    project.edit("WIDTH**-0.5", "WIDTH**-0.5 * 1.01", "src/plain_loop.py")
    answer = project.golden("check", "plain_seed", "--against", "HEAD", **path)
    assert answer.code == 1, answer.out + answer.err


def test_an_installed_copy_that_comes_first_is_no_comparison(project: Any, tmp_path: Path) -> None:
    (project.root / "code").mkdir()
    for name in ("plain_loop.py", "plain_cases.py"):
        project.git("mv", name, f"code/{name}")
    project.commit("Where no path leads")
    installed = tmp_path / "installed"
    installed.mkdir()
    for name in ("plain_loop.py", "plain_cases.py"):
        (installed / name).symlink_to(project.root / "code" / name)
    path = {"PYTHONPATH": f"{installed}:" + project.environment()["PYTHONPATH"]}
    answer = project.golden("check", "plain_seed", "--against", "HEAD", "--json", **path)
    assert answer.code == 3, answer.out + answer.err
    assert "imported the working tree's code" in answer.json()["cases"][0]["message"]


def test_cases_of_one_side_alone_are_not_comparable(project: Any) -> None:
    project.edit('name="plain_seed"', 'name="plain_new"', "plain_cases.py")
    answer = project.golden("check", "--against", "HEAD", "--json")
    assert answer.code == 0, answer.err
    reasons = {case["case"]: case["skipped_because"] for case in answer.json()["cases"]}
    assert reasons["plain_loss"] is None
    assert "has no such case" in reasons["plain_new"]
    assert "alone has it" in reasons["plain_seed"]
    answer = project.golden("check", "plain_new", "--against", "HEAD", "--json")
    assert answer.code == 3
    assert "Nothing was compared" in answer.json()["message"]


def test_a_side_that_cannot_run_is_invalid_and_says_which(project: Any) -> None:
    project.edit("import torch\n", "import torch\nimport no_such_module\n")
    answer = project.golden("check", "plain_seed", "--against", "HEAD", "--json")
    assert answer.code == 3
    assert "this tree could not be run" in answer.json()["message"]
    project.commit("Broken")
    project.edit("import no_such_module\n", "")
    answer = project.golden("check", "plain_seed", "--against", "HEAD", "--json")
    assert answer.code == 3
    assert "HEAD (" in answer.json()["message"]
    assert "no_such_module" in answer.json()["cases"][0]["message"]
    project.edit(
        "import contextlib\n", "import contextlib\nimport no_such_case\n", "plain_cases.py"
    )
    project.commit("Its cases cannot be imported")
    project.edit("import no_such_case\n", "", "plain_cases.py")
    answer = project.golden("check", "plain_seed", "--against", "HEAD", "--json")
    assert answer.code == 3
    assert "no_such_case" in answer.json()["cases"][0]["message"]


def test_what_does_not_repeat_itself_blames_no_change(project: Any) -> None:
    project.edit("total += loss.item()", FLICKER)
    project.commit("Something of the clock")
    project.edit("WIDTH**-0.5", "WIDTH**-0.5 * 1.01")
    answer = project.golden("check", "plain_seed", "--against", "HEAD", "--json")
    assert answer.code == 5, answer.out
    assert answer.json()["verdict"] == "NONDETERMINISTIC"
    assert "does not repeat itself" in answer.json()["message"]
    assert "lm_loss" in answer.json()["message"]


def test_nan_on_both_sides_is_a_failure_that_repeats(project: Any) -> None:
    project.edit("total += loss.item()", "total += float('nan')")
    project.commit("No number")
    assert project.golden("check", "plain_seed", "--against", "HEAD").code == 1


def test_data_that_git_does_not_track_is_there_for_both_sides(project: Any) -> None:
    (project.root / ".gitignore").write_text("__pycache__/\nruns/\ncache/\n")
    reads = (
        "    data = batches()\n",
        "    seed = sum(int(open(p).read()) for p in ('cache/seed', '../../beside/seed'))\n"
        "    data = batches(seed)\n",
    )
    project.edit(*reads)
    project.edit(
        '"seed": 7},\n',
        '"seed": 7},\n        needs=Needs(paths=["cache/seed", "../../beside"]),\n',
        "plain_cases.py",
    )
    project.edit("Benign, Case, Fault", "Benign, Case, Fault, Needs", "plain_cases.py")
    project.commit("Data of its own")
    answer = project.golden("check", "plain_seed", "--against", "HEAD", "--json")
    assert answer.code == 3
    assert "needs cache/seed" in answer.json()["cases"][0]["skipped_because"]
    (project.root / "cache").mkdir()
    (project.root / "cache" / "seed").write_text("1")
    beside = project.root.parent.parent / "beside"
    beside.mkdir()
    (beside / "seed").write_text("2")
    answer = project.golden("check", "plain_seed", "--against", "HEAD", "--json")
    assert answer.code == 0, json.dumps(answer.json(), indent=1) + answer.err
    assert (beside / "seed").read_text() == "2"


@pytest.mark.parametrize(
    "words",
    [
        ("--against", "no-such-revision"),
        ("--against", ""),
        ("--against", "--help"),
        ("--against", "HEAD", "--judge", "HEAD"),
        ("--against", "HEAD", "--exact"),
        ("no_such_case", "--against", "HEAD"),
    ],
)
def test_wrong_usage_runs_nothing(project: Any, words: tuple[str, ...]) -> None:
    answer = project.golden("check", *words)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err
    assert not (project.root / "runs").exists()
