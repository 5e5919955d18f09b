"""`update.sh propose`: the job whose token pushes takes goldens alone, and loses nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from .runner import Done, Runner, gh_calls, install_gh, make_runner

GOLDEN = "goldens/cpu/tiny/golden.json"
BRANCH = "goldens/1"


@pytest.fixture
def runner(project_type: Any, tmp_path: Path) -> Runner:
    """A clone of a bare remote with one golden, and a `gh` that agrees to everything."""
    root, origin = tmp_path / "head", tmp_path / "origin.git"
    root.mkdir()
    project = project_type(root)
    project.git("init", "-q", "-b", "main")
    project.git("config", "user.name", "Ada")
    project.git("config", "user.email", "ada@example.org")
    for name, text in {GOLDEN: "old\n", "README.md": "read\n", "code.py": "pass\n"}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / ".gitignore").write_text("reports/\n")
    project.commit("a golden")
    subprocess.run(["git", "clone", "-q", "--bare", root, origin], check=True)
    project.git("remote", "add", "origin", str(origin))
    project.git("fetch", "-q", "origin")
    made = make_runner(project, tmp_path / "tools")
    install_gh(made)
    return made


def patch_of(runner: Runner, change: Callable[[Path], None], *, stage: bool = True) -> None:
    """Leaves what a job that ran the branch's code could: a patch of any change."""
    project, scratch = runner.project, runner.project.root.parent / "scratch"
    subprocess.run(["git", "clone", "-q", project.root, scratch], check=True)
    change(scratch)
    if stage:
        subprocess.run(["git", "-C", scratch, "add", "-A"], check=True)
    words = ["git", "-C", scratch, "diff", "--cached", "--binary", "HEAD"]
    patch = subprocess.run(words, capture_output=True, check=True).stdout
    shutil.rmtree(scratch)
    leave(runner, patch)


def leave(runner: Runner, patch: bytes) -> None:
    """Leaves a patch as the artifact."""
    folder = runner.project.root / "reports/update"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "goldens.patch").write_bytes(patch)
    (folder / "change.txt").write_text("lm_loss moved\n````\n@octocat\n")


def propose(runner: Runner, reason: str = "a wider window") -> Done:
    """Runs the job's script."""
    words = {"BASE_BRANCH": "main", "NEW_BRANCH": BRANCH, "REASON": reason}
    return runner.run("update.sh", "propose", **words)


def state(runner: Runner) -> Any:
    """What a refusal must leave as it was."""
    git = runner.project.git
    refs = git("ls-remote", "origin"), git("for-each-ref"), git("status", "--porcelain")
    return refs, (runner.project.root / GOLDEN).read_text()


def accept(text: str = "new\n") -> Callable[[Path], None]:
    """The change that an honest acceptance makes."""

    def change(root: Path) -> None:
        (root / GOLDEN).write_text(text)
        (root / "goldens/audit").mkdir()
        (root / "goldens/audit/20260101T000000-01234567.json").write_text("{}\n")

    return change


def test_a_patch_of_goldens_is_pushed_and_proposed(runner: Runner) -> None:
    patch_of(runner, accept())
    done = propose(runner, reason="fixes #1 for @octocat")
    assert done.code == 0, done.err
    git = runner.project.git
    assert git("diff", "--name-only", "origin/main", BRANCH).split() == [
        "goldens/audit/20260101T000000-01234567.json",
        GOLDEN,
    ]
    assert git("rev-parse", BRANCH).strip() in git("ls-remote", "origin", BRANCH)
    created = gh_calls(runner)[-1]
    assert created[:4] == ["pr", "create", "--base", "main"]
    body = (runner.project.root / "reports/update/body.md").read_text()
    assert "````text\nfixes #1 for @octocat\n````" in body
    assert "`````text\nlm_loss moved\n````\n@octocat\n`````" in body


def _link(root: Path) -> None:
    (root / "goldens/cpu/tiny/curves.json").symlink_to("/proc/self/environ")


def _folder_link(root: Path) -> None:
    (root / "goldens/gpu").symlink_to("../.github/workflows")


def _goldens_link(root: Path) -> None:
    shutil.rmtree(root / "goldens")
    (root / "goldens").symlink_to("/etc")


def _goldens_file(root: Path) -> None:
    shutil.rmtree(root / "goldens")
    (root / "goldens").write_text("a file\n")


def _become_link(root: Path) -> None:
    (root / GOLDEN).unlink()
    (root / GOLDEN).symlink_to("../../../README.md")


def _executable(root: Path) -> None:
    (root / GOLDEN).chmod(0o755)


def _moved_in(root: Path) -> None:
    (root / "README.md").rename(root / "goldens/cpu/tiny/README.md")


def _moved_out(root: Path) -> None:
    (root / GOLDEN).rename(root / "golden.json")


def _deleted_outside(root: Path) -> None:
    (root / "code.py").unlink()
    accept()(root)


def _workflow(root: Path) -> None:
    (root / ".github/workflows").mkdir(parents=True)
    (root / ".github/workflows/evil.yml").write_text("on: push\n")
    accept()(root)


def _sibling(root: Path) -> None:
    (root / "goldens.py").write_text("evil\n")
    accept()(root)


def _attributes(root: Path) -> None:
    (root / "goldens/.gitattributes").write_text("* filter=evil\n")


def _newline(root: Path) -> None:
    (root / "goldens/a\nb").write_text("x\n")


def _option(root: Path) -> None:
    (root / "goldens/cpu/--upload-pack=x").write_text("x\n")


def _submodule(root: Path) -> None:
    head = subprocess.check_output(["git", "-C", root, "rev-parse", "HEAD"], text=True).strip()
    words = ["update-index", "--add", "--cacheinfo", f"160000,{head},goldens/cpu/module"]
    subprocess.run(["git", "-C", root, *words], check=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_link, "goldens/cpu/tiny/curves.json is a symbolic link"),
        (_folder_link, "goldens/gpu is a symbolic link"),
        (_goldens_link, "goldens is a symbolic link"),
        (_goldens_file, "goldens itself is a file"),
        (_become_link, f"{GOLDEN} is a symbolic link"),
        (_executable, f"{GOLDEN} is executable"),
        (_moved_in, "outside goldens/: README.md"),
        (_moved_out, "outside goldens/: golden.json"),
        (_deleted_outside, "outside goldens/: code.py"),
        (_workflow, "outside goldens/: .github/workflows/evil.yml"),
        (_sibling, "outside goldens/: goldens.py"),
        (_attributes, "no name of a golden's file: goldens/.gitattributes"),
        (_newline, "no name of a golden's file: 'goldens/a\\nb'"),
        (_option, "no name of a golden's file: goldens/cpu/--upload-pack=x"),
        (_submodule, "goldens/cpu/module is a submodule"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_anything_but_plain_files_below_goldens_is_refused(
    runner: Runner, change: Callable[[Path], None], said: str
) -> None:
    patch_of(runner, change, stage=change is not _submodule)
    before = state(runner)
    done = propose(runner)
    assert done.code == 2, done.out + done.err
    assert said in done.err
    assert state(runner) == before
    assert gh_calls(runner) == []


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (b"", "No valid patches"),
        (b"no patch\n", "No valid patches"),
        (b"--- /dev/null\n+++ b/../outside\n@@ -0,0 +1 @@\n+x\n", "invalid path '../outside'"),
        (b"--- /dev/null\n+++ b/.git/hooks/x\n@@ -0,0 +1 @@\n+x\n", "invalid path '.git/hooks/x'"),
    ],
)
def test_a_patch_that_git_refuses_is_refused(runner: Runner, patch: bytes, said: str) -> None:
    leave(runner, patch)
    before = state(runner)
    done = propose(runner)
    assert done.code == 2
    assert said in done.err
    assert state(runner) == before


def test_a_link_that_the_branch_has_is_refused_too(runner: Runner) -> None:
    (runner.project.root / "goldens/cpu/other").symlink_to("/proc/self")
    runner.project.commit("a link")
    patch_of(runner, accept())
    done = propose(runner)
    assert done.code == 2
    assert "goldens/cpu/other is a symbolic link" in done.err


def test_an_artifact_that_is_a_link_or_too_large_is_refused(runner: Runner) -> None:
    patch = runner.project.root / "reports/update/goldens.patch"
    patch.parent.mkdir(parents=True)
    patch.symlink_to("/dev/zero")
    assert propose(runner).code == 2
    patch.unlink()
    patch.touch()
    os.truncate(patch, 2**33)
    done = propose(runner)
    assert done.code == 2
    assert "of at most" in done.err


def test_what_somebody_has_staged_is_not_taken_along(runner: Runner) -> None:
    patch_of(runner, accept())
    (runner.project.root / "code.py").write_text("changed\n")
    runner.project.git("add", "code.py")
    before = state(runner)
    done = propose(runner)
    assert done.code == 2
    assert "staged already" in done.err
    assert state(runner) == before


def test_a_job_that_runs_again_finds_its_branch(runner: Runner) -> None:
    git = runner.project.git
    patch_of(runner, accept())
    assert propose(runner).code == 0
    first = git("ls-remote", "origin", BRANCH)
    git("switch", "-q", "main")
    install_gh(runner, ("pr list", "12\n"))
    again = propose(runner)
    assert again.code == 0, again.err
    assert "has this proposal already" in again.out
    assert git("ls-remote", "origin", BRANCH) == first
    assert gh_calls(runner)[-1][:3] == ["pr", "edit", "12"]


def test_an_earlier_proposal_is_replaced(runner: Runner) -> None:
    git = runner.project.git
    patch_of(runner, accept())
    assert propose(runner).code == 0
    git("switch", "-q", "main")
    git("branch", "-D", BRANCH)  # a fresh machine has none
    patch_of(runner, accept("newer\n"))
    done = propose(runner)
    assert done.code == 0, done.err
    assert git("show", f"{BRANCH}:{GOLDEN}") == "newer\n"
    assert git("rev-parse", BRANCH).strip() in git("ls-remote", "origin", BRANCH)
    assert git("rev-list", "--count", f"origin/main..{BRANCH}").strip() == "1"


@pytest.mark.parametrize("where", ["remote", "local"])
def test_somebodys_commits_on_the_branch_are_never_lost(runner: Runner, where: str) -> None:
    git = runner.project.git
    patch_of(runner, accept())
    assert propose(runner).code == 0
    (runner.project.root / "code.py").write_text("mended\n")
    git("config", "user.email", "ada@example.org")
    git("config", "user.name", "Ada")
    git("commit", "-qam", "mend the code")
    if where == "remote":
        git("push", "-q", "origin", BRANCH)
    git("switch", "-q", "main")
    if where == "remote":
        git("branch", "-D", BRANCH)
    patch_of(runner, accept("newer\n"))
    before = git("ls-remote", "origin"), git("for-each-ref", "refs/heads")
    done = propose(runner)
    assert done.code == 2
    assert f"the branch {BRANCH} exists" in done.err
    assert "Ada: mend the code" in done.err
    assert (git("ls-remote", "origin"), git("for-each-ref", "refs/heads")) == before


def test_a_token_that_may_not_push_or_propose_is_told_what_it_lacks(runner: Runner) -> None:
    patch_of(runner, accept())
    install_gh(runner, ("pr create", 1))
    done = propose(runner)
    assert done.code == 2
    assert "must allow GitHub Actions to create pull requests" in done.err
    hook = runner.project.root.parent / "origin.git/hooks/pre-receive"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    runner.project.git("switch", "-q", "main")
    patch_of(runner, accept("newer\n"))
    done = propose(runner)
    assert done.code == 2
    assert "the token needs contents: write" in done.err


def test_a_branch_cannot_lead_the_artifact_into_mains_scripts(repository: Path) -> None:
    text = (repository / ".github/workflows/golden-update.yml").read_text()
    steps = yaml.safe_load(text)["jobs"]["propose"]["steps"]
    (download,) = [step for step in steps if "download-artifact" in step.get("uses", "")]
    checkouts = [s["with"]["path"] for s in steps if "actions/checkout" in s.get("uses", "")]
    assert download["with"]["path"].split("/")[0] not in checkouts
