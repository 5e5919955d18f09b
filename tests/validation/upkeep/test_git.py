"""Goldens in git: two branches that accept, the text of a diff, and the search for a bad commit."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from validation.goldens import GoldenStore
from validation.goldens.merge import ConflictedGoldenError

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
    merge = project.git_code("merge", "-q", "--no-edit", "other")
    if merge:  # the names of a golden's files may clash, the head never decides silently
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
    assert lines == ["*.bin binary", "goldens/**/golden.json merge=golden diff=golden"]
    assert "merge-driver" in project.git("config", "merge.golden.driver")
