"""Goldens in git: two branches that accept, the text of a diff, and the search for a bad commit."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from validation.goldens import GoldenStore
from validation.goldens.merge import ATTRIBUTES, ConflictedGoldenError

CLI = f"{sys.executable} -m validation.cli"


@pytest.fixture
def project(golden_project: Any) -> Any:
    """A repository whose git knows the merge driver."""
    answer = golden_project.golden("setup")
    assert answer.code == 0, answer.err
    # `golden` itself need not be on the PATH of a test.
    golden_project.git("config", "merge.golden.driver", f"{CLI} merge-driver %O %A %B")
    golden_project.git("config", "diff.golden.textconv", f"{CLI} show")
    golden_project.commit("golden setup")
    return golden_project


_FIT = """\
import numpy as np
from validation.cases import Case

RATE = 0.1


def run(recorder, settings):
    source = np.random.default_rng(1)
    inputs, weights = source.standard_normal((64, 8)), np.zeros(8)
    targets = inputs @ np.arange(8.0)
    if "perturb_seed" in settings:
        up = np.random.default_rng(settings["perturb_seed"]).random(64 * 8) < 0.5
        inputs = np.nextafter(inputs, np.where(up, np.inf, -np.inf).reshape(64, 8))
    for step in range(1, 9):
        error = inputs @ weights - targets
        recorder.curve(step, "loss", np.mean(error**2))
        weights -= RATE * inputs.T @ error / 64
        recorder.curve(step, "weights", np.linalg.norm(weights), phase="optimizer")


CASES = [Case(name="fit", description="least squares", lanes=["cpu"], target="fit:run")]
"""


@pytest.fixture
def fits(plain_project: Any) -> Any:
    """A repository on the second of two branches that accepted its case; it trains in no time."""
    project = plain_project
    project.git("rm", "-q", "plain_cases.py", "plain_loop.py")
    (project.root / "pyproject.toml").write_text('[tool.golden]\ncases = ["fit"]\n')
    (project.root / "fit.py").write_text(_FIT)
    assert project.golden("setup").code == 0
    project.git("config", "merge.golden.driver", f"{CLI} merge-driver %O %A %B")
    project.commit("a fit")
    for words in (["update", "--reason", "first"], ["calibrate", "--runs", "3"]):
        answer = project.golden(*words)
        assert answer.code == 0, answer.err
        project.commit(words[0])
    accept(project, "one", "fit", "RATE = 0.1", "RATE = 0.2", "a higher rate", "fit.py")
    accept(project, "other", "fit", "np.arange(8.0)", "np.ones(8)", "other data", "fit.py")
    return project


def accept(
    project: Any,
    branch: str,
    case: str,
    old: str,
    new: str,
    reason: str,
    file: str = "plain_loop.py",
) -> None:
    """A branch that changes the code, and then its golden."""
    project.git("checkout", "-q", "-b", branch, "main")
    project.edit(old, new, file)
    project.commit(f"{branch}: {old} -> {new}")
    words = ["update", case, "--reason", reason, "--expect", f"{case}:*:any"]
    answer = project.golden(*words)
    assert answer.code == 0, answer.err
    project.commit(f"{branch}: accept")


def test_two_branches_that_accept_the_same_case(project: Any) -> None:
    accept(project, "one", "plain_seed", "lr=3e-3", "lr=4e-3", "a higher rate")
    accept(project, "other", "plain_seed", "seed: int = 2", "seed: int = 3", "other data")
    project.git("checkout", "-q", "-b", "merged", "one")
    assert project.git_code("merge", "-q", "--no-edit", "other") == 1
    project.git("add", "-A")
    project.git("commit", "-q", "--no-edit")
    answer = project.golden("check", "plain_seed", "--json")
    assert answer.code == 3
    message = answer.json()["cases"][0]["message"]
    assert "a higher rate" in message
    assert "other data" in message
    assert "golden rebase plain_seed" in message
    text = project.golden("rebase")
    assert text.code == 0, text.err
    assert "a higher rate" in text.out
    assert "other data" in text.out
    project.commit("rebase")
    assert project.golden("check", "plain_seed").code == 0
    audits = [json.loads(p.read_text()) for p in (project.root / "goldens/audit").glob("*.json")]
    assert any("a higher rate" in a["reason"] and "other data" in a["reason"] for a in audits)
    calibrated = GoldenStore(project.root / "goldens").load("cpu", "plain_seed")
    assert calibrated.tolerances.classes, "a rebase keeps the tolerances"


@pytest.mark.parametrize("driver", [True, False], ids=["driver", "git alone"])
@pytest.mark.parametrize("command", ["merge", "rebase"])
def test_a_rebase_resolves_gits_own_conflict(fits: Any, command: str, driver: bool) -> None:
    project = fits
    if not driver:  # as in a clone where nobody ran `golden setup`
        project.git("config", "--remove-section", "merge.golden")
    former = GoldenStore(project.root / "goldens").load("cpu", "fit").tolerances
    assert former.classes
    assert project.git_code(command, "one") == 1
    waiting = set(project.git("diff", "--name-only", "--diff-filter=U").split())
    assert waiting == {"goldens/cpu/fit/golden.json", "goldens/cpu/fit/curves.json"}
    answer = project.golden("check")
    assert answer.code == 3
    assert "golden rebase fit" in answer.out

    (project.root / "notes.py").write_text("")  # a change that would not be committed with it
    answer = project.golden("rebase")
    assert answer.code == 2
    assert "notes.py" in answer.err
    (project.root / "notes.py").unlink()

    answer = project.golden("rebase")
    assert answer.code == 0, answer.err
    assert "the merged code against ours: 2 moved" in answer.out
    assert "the merged code against theirs: 2 moved" in answer.out
    assert "no conflict is left" in answer.out
    finish = ["commit", "--no-edit"] if command == "merge" else ["rebase", "--continue"]
    project.git("-c", "core.editor=true", *finish)
    assert project.git("status", "--porcelain") == ""
    assert project.golden("check").code == 0
    golden = GoldenStore(project.root / "goldens").load("cpu", "fit")
    assert golden.tolerances == former, "a rebase keeps the tolerances"
    assert "a higher rate" in golden.accepted["reason"]
    assert "other data" in golden.accepted["reason"]
    assert "nothing to rebase" in project.golden("rebase").out


@pytest.mark.parametrize("driver", [True, False], ids=["driver", "git alone"])
def test_a_rebase_that_was_stopped_is_finished_by_the_next(fits: Any, driver: bool) -> None:
    project = fits
    if not driver:
        project.git("config", "--remove-section", "merge.golden")
    assert project.git_code("merge", "one") == 1
    kept = project.copy(project.root.parent / "stopped")
    assert project.golden("rebase").code == 0
    # It has written golden and audit, and was killed before it could stage them.
    shutil.rmtree(kept.root / "goldens")
    shutil.copytree(project.root / "goldens", kept.root / "goldens")
    answer = kept.golden("rebase")
    assert answer.code == 0, answer.err
    assert "recorded already: fit" in answer.out
    assert "no conflict is left" in answer.out
    assert kept.git("status", "--porcelain") == project.git("status", "--porcelain")


def test_a_side_that_git_left_whole_is_not_taken_for_recorded(fits: Any) -> None:
    project = fits
    project.git("checkout", "-q", "-b", "gone", "main")
    project.git("rm", "-q", "-r", "goldens/cpu/fit")
    project.commit("No golden")
    assert project.git_code("merge", "one") == 1  # deleted here, accepted there
    assert (project.root / "goldens/cpu/fit/golden.json").exists()
    answer = project.golden("rebase")
    assert "recorded already" not in answer.out
    assert project.git("diff", "--name-only", "--diff-filter=U")


def test_a_conflict_that_was_committed_is_rebased_later(fits: Any) -> None:
    project = fits
    project.git("config", "--remove-section", "merge.golden")
    assert project.git_code("merge", "one") == 1
    project.commit("with git's marks in the golden")
    with pytest.raises(ConflictedGoldenError, match="other data"):
        GoldenStore(project.root / "goldens").load("cpu", "fit")
    former = json.loads(project.git("show", "main:goldens/cpu/fit/golden.json"))
    answer = project.golden("rebase")
    assert answer.code == 0, answer.err
    assert "against ours" in answer.out
    assert "against theirs" in answer.out
    assert "staged" not in answer.out, "no merge is under way"
    head = json.loads((project.root / "goldens/cpu/fit/golden.json").read_text())
    assert head["tolerances"] == former["tolerances"]


def test_records_of_a_golden_are_diffed_by_lines(fits: Any) -> None:
    project = fits
    text = project.git("diff", "main", "one", "--", "goldens/cpu/fit/curves.json")
    changed = [line[:8] for line in text.splitlines() if line.startswith(("+", "-"))]
    assert '+"loss":' in changed
    assert '-"loss":' in changed
    names = project.git("diff", "--name-status", "main", "one", "--", "goldens/cpu")
    assert all(line.startswith("M\t") for line in names.splitlines())


def test_git_alone_never_picks_a_side_either(golden_project: Any) -> None:
    project = golden_project  # a clone where nobody ran `golden setup`
    accept(project, "one", "plain_seed", "lr=3e-3", "lr=4e-3", "a higher rate")
    accept(project, "other", "plain_seed", "seed: int = 2", "seed: int = 3", "other data")
    assert project.git_code("merge", "-q", "--no-edit", "one") != 0
    with pytest.raises(ConflictedGoldenError, match="other data"):
        GoldenStore(project.root / "goldens").load("cpu", "plain_seed")


def test_branches_that_accept_different_cases_merge_clean(project: Any) -> None:
    cases = "plain_cases.py"
    accept(project, "one", "plain_seed", '"seed": 7', '"seed": 8', "another seed", cases)
    accept(project, "other", "plain_loss", '"steps": 12', '"steps": 11', "fewer steps", cases)
    project.git("merge", "-q", "--no-edit", "one")
    assert project.golden("check").code == 0


def test_git_diff_shows_a_golden_as_text(project: Any) -> None:
    accept(project, "one", "plain_seed", "lr=3e-3", "lr=4e-3", "a higher rate")
    text = project.git("diff", "main", "one", "--", "goldens/cpu/plain_seed/golden.json")
    assert '+accepted: reason: "a higher rate"' in text


def test_bisect_finds_a_bug_among_32_commits(golden_project: Any) -> None:
    project = golden_project
    good = project.git("rev-parse", "HEAD").strip()
    planted = ""
    for number in range(1, 33):
        if number == 8:  # an intended change, committed before its golden as people do
            project.edit("lr=3e-3", "lr=4e-3")
        if number == 9:
            words = ["plain_seed", "--reason", "faster", "--expect", "plain_seed:*:any"]
            assert project.golden("update", *words).code == 0
        if number in (15, 16, 17):
            project.edit("import torch\n", "import torch\nimport no_such_module\n")
        if number == 21:
            project.edit("WIDTH**-0.5", "WIDTH**-0.5 * 1.01")
        (project.root / "notes.txt").write_text(f"{number}\n")
        commit = project.commit(f"commit {number}")
        planted = commit if number == 21 else planted
        if number in (15, 16, 17):
            project.edit("import no_such_module\n", "")
    answer = project.golden("bisect", good, "HEAD", "plain_seed")
    assert answer.code == 0, answer.err
    assert answer.out.startswith(planted)
    assert "commit 21" in answer.out
    assert project.git("status", "--porcelain") == ""
    assert project.git("worktree", "list").count("\n") == 1
    assert project.golden("bisect", good, f"{planted}~1", "plain_seed").code == 2


def test_a_clone_is_set_up_once(plain_project: Any) -> None:
    project = plain_project
    (project.root / ".gitattributes").write_text("*.bin binary")
    for _ in range(2):
        assert project.golden("setup").code == 0
    lines = Path(project.root / ".gitattributes").read_text().splitlines()
    assert lines == ["*.bin binary", *ATTRIBUTES]
    assert "merge-driver" in project.git("config", "merge.golden.driver")
