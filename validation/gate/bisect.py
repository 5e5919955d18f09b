"""`golden bisect`: the commit that broke a case, judged by today's gate from outside the checkout.

The search runs in a git worktree of its own; the `validation` package that judges is a copy of the
running one. A commit is good if it matches any golden of the case that was accepted between GOOD
and BAD, since a change is committed before its golden. A commit whose run leaves no trace (it does
not build) is skipped, unless that is what is wrong with BAD.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from validation.cases import discover_cases
from validation.compare import compare
from validation.compat import StrEnum, module_command
from validation.config import declaration_of
from validation.files import DamagedFileError
from validation.gate.base import checked_out
from validation.goldens.acceptance import RefusedError
from validation.goldens.store import GoldenStore
from validation.progress import Progress
from validation.run_folder import LOG_FILE
from validation.running.execution import RunOptions, run_case
from validation.running.revisions import copied_gate, revision_path
from validation.running.source import RepositoryError, git


class State(StrEnum):
    """What today's gate says of a commit."""

    GOOD = "good"
    BAD = "bad"
    BROKEN = "broken"


# Python itself exits with 1 or 2 when something is wrong with the gate.
_EXIT_CODES = {10: State.GOOD, 11: State.BAD, 12: State.BROKEN}


@dataclass(frozen=True)
class Found:
    """The end of a search.

    Attributes:
        commits: the first bad commit; several when skipped ones stand between.
        log: state of each commit that was tried, in order.
    """

    commits: Sequence[str]
    log: Sequence[tuple[str, State]]


def bisect(root: Path, good: str, bad: str, case: str, lane: str, progress: Progress) -> Found:
    """Finds the first commit after `good` that fails a case.

    Args:
        root: the repository; its working tree stays as it is.
        good: a revision that passes.
        bad: a later revision that fails.
        case: name of the case.
        lane: lane of the golden.
        progress: told each verdict.

    Returns:
        The first bad commit, and the log of the runs.

    Raises:
        RefusedError: GOOD fails, BAD passes, or there is no golden to judge by.
    """
    first, last = (resolve_commit(root, revision) for revision in (good, bad))
    between = git(root, "rev-list", f"{first}..{last}").split()
    if not between or git(root, "merge-base", first, last).strip() != first:
        raise RefusedError(f"{bad} does not descend from {good}")
    with workshop(root, first, case, lane) as shop, tempfile.TemporaryDirectory() as name:
        goldens = Path(name)
        _collect_goldens(root, first, last, case, lane, goldens)
        log: list[tuple[str, State]] = []

        def judge(commit: str) -> State:
            state = shop.judge(commit, goldens)
            log.append((commit, state))
            progress.message(f"{commit[:12]} {state}: {_subject(root, commit)}")
            return state

        state = judge(first)
        if state is not State.GOOD:
            raise RefusedError(f"{good} is {state}: it matches no golden; give an earlier revision")
        state = judge(last)
        if state is State.GOOD:
            raise RefusedError(f"{bad} is good: it matches a golden that was accepted since {good}")
        crash_is_bad = state is State.BROKEN
        return Found(_search(shop.tree, first, last, judge, crash_is_bad), log)


def _search(
    tree: Path,
    first: str,
    last: str,
    judge: Callable[[str], State],
    crash_is_bad: bool,
) -> list[str]:
    """Lets git choose the commits to try; returns the first bad one, or its candidates."""
    git(tree, "bisect", "start", "--no-checkout", last, first)
    try:
        while True:
            commit = git(tree, "rev-parse", "--verify", "BISECT_HEAD").strip()
            state = judge(commit)
            if state is State.BROKEN:
                state = State.BAD if crash_is_bad else state
            word = "skip" if state is State.BROKEN else str(state)
            done = subprocess.run(
                ["git", "-C", str(tree), "bisect", word, commit],
                capture_output=True,
                text=True,
                check=False,
            )
            lines = done.stdout.splitlines()
            found = next((ln.split()[0] for ln in lines if ln.endswith("first bad commit")), None)
            if found is not None:
                return [found]
            if done.returncode:  # only skipped commits are left
                return [word for line in lines for word in line.split() if _is_commit(word)]
    finally:
        git(tree, "bisect", "reset", "HEAD")


@dataclass(frozen=True)
class Workshop:
    """A worktree to try commits in, and a copy of today's gate outside of it."""

    root: Path
    tree: Path
    gate: Path
    case: str
    lane: str

    def judge(self, commit: str, goldens: Path, python: str = sys.executable) -> State:
        """Runs the case as of a commit.

        Args:
            commit: what to check out.
            goldens: a folder for each set of goldens; matching any of them is good.
            python: interpreter of the environment to run in.

        Returns:
            Whether the commit is good, bad or cannot be tried.

        Raises:
            RefusedError: the gate itself failed.
        """
        git(self.tree, "checkout", "--quiet", "--force", "--detach", commit)
        git(self.tree, "clean", "-fdq")
        words = [self.lane, self.case, str(goldens), str(self.root)]
        command = module_command("validation.gate.bisect", *words, python=python)
        path = revision_path(self.root, self.tree, self.gate)
        done = subprocess.run(
            command,
            cwd=self.tree,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode not in _EXIT_CODES:
            raise RefusedError(f"{commit[:12]}: the gate itself failed:\n{done.stdout[-2000:]}")
        return _EXIT_CODES[done.returncode]


@contextlib.contextmanager
def workshop(root: Path, commit: str, case: str, lane: str) -> Iterator[Workshop]:
    """Makes a workshop that is gone afterwards; the repository's working tree stays as it is.

    Args:
        root: the repository.
        commit: any that can be checked out.
        case: name of the case.
        lane: its lane.

    Yields:
        The workshop.
    """
    with tempfile.TemporaryDirectory(prefix="golden-bisect-") as name:
        gate, tree = copied_gate(Path(name) / "gate"), Path(name) / "tree"
        git(root, "worktree", "add", "--quiet", "--detach", "--force", str(tree), commit)
        try:
            yield Workshop(root, tree, gate, case, lane)
        finally:
            git(root, "worktree", "remove", "--force", str(tree))


def _collect_goldens(root: Path, first: str, last: str, case: str, lane: str, folder: Path) -> None:
    """Every golden of the case that was accepted between the two commits, one folder each."""
    place = f"goldens/{lane}/{case}"
    later = git(root, "rev-list", f"{first}..{last}", "--", place).split()
    for commit in [first, *later]:
        with checked_out(root, commit, ("goldens",)) as tree:
            if GoldenStore(tree / "goldens").places(lane, case):
                shutil.copytree(tree / place, folder / commit / lane / case)
    if not any(folder.iterdir()):
        raise RefusedError(f"no golden of {lane}/{case} was accepted up to {last[:12]}")


def resolve_commit(root: Path, revision: str) -> str:
    """Resolves a revision to a commit.

    Args:
        root: the repository.
        revision: a branch, tag or commit.

    Returns:
        The commit's id.

    Raises:
        RefusedError: there is no such revision.
    """
    try:
        return git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip()
    except RepositoryError as error:
        raise RefusedError(f"{revision}: not a revision of {root}") from error


def _subject(root: Path, commit: str) -> str:
    return git(root, "log", "-1", "--format=%s", commit).strip()


def _is_commit(word: str) -> bool:
    return len(word) == 40 and all(c in "0123456789abcdef" for c in word)


# --- one commit, in the worktree ------------------------------------------------------------


def judge_here(lane: str, name: str, goldens: Path, today: Path) -> State:
    """Runs the case in the working directory, and compares it with every accepted golden.

    Args:
        lane: lane of the goldens.
        name: of the case.
        goldens: a folder for each set of goldens.
        today: the repository, whose declaration serves commits from before they had one.

    Returns:
        Whether the case matches a golden, matches none, or left no trace.
    """
    tree = Path.cwd()
    try:
        case = discover_cases(tree, declaration_of(tree, today))[name]
        with tempfile.TemporaryDirectory(prefix="golden-log-") as folder:
            trace = run_case(case, RunOptions(lane=lane), tree, Path(folder) / LOG_FILE)
    except Exception as error:  # whatever importing an old commit's code can raise
        print(error)
        return State.BROKEN
    for accepted in sorted(goldens.iterdir()):
        try:
            found = trace.provenance["environment"]
            golden = GoldenStore(accepted).nearest(lane, name, found)
        except DamagedFileError as error:
            print(error)
            continue
        comparison = compare(golden.trace, trace, golden.tolerances)
        if comparison.compared and not comparison.divergences:
            return State.GOOD
    return State.BAD


if __name__ == "__main__":
    verdict = judge_here(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    sys.exit(next(code for code, state in _EXIT_CODES.items() if state is verdict))
