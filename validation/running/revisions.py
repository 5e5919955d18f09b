"""A revision of the repository beside the working tree, whose code runs under today's gate.

The revision stands in a git worktree of its own, which is gone afterwards. What runs and measures
its code is a copy of the running `validation` package, first on the search path; then come the
revision's own folders, in place of the working tree's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from validation.config import search_path
from validation.config.python_path import python_path
from validation.running.source import RepositoryError, git


def commit_of(root: Path, revision: str, option: str) -> str:
    """Resolves a revision that an option of the command line names.

    Args:
        root: the repository.
        revision: a branch, tag or commit.
        option: the option, for messages.

    Returns:
        The commit's id.

    Raises:
        RepositoryError: there is no such revision.
    """
    try:
        # Behind this, what begins with a dash is a revision too.
        words = ("rev-parse", "--verify", "--quiet", "--end-of-options")
        return git(root, *words, f"{revision}^{{commit}}").strip()
    except RepositoryError as error:
        raise RepositoryError(f"{option} {revision}: not a revision of {root}") from error


@contextlib.contextmanager
def base_checkout(
    root: Path, revision: str, option: str, needs: Sequence[str] = ()
) -> Iterator[tuple[Path, str]]:
    """Checks a revision out into a temporary worktree.

    Args:
        root: the repository.
        revision: what to check out.
        option: of the command line, which a message names.
        needs: paths relative to the repository that runs read. Where git does not track one (data
            beside the checkout, or ignored in it), the worktree has a link to it.

    Yields:
        The worktree, and the commit's id.

    Raises:
        RepositoryError: there is no such revision.
    """
    commit = commit_of(root, revision, option)
    with tempfile.TemporaryDirectory(prefix="golden-base-") as name:
        # As deep as a path leads upwards, so that its link is inside of the temporary folder too.
        deep = max((Path(os.path.normpath(path)).parts.count("..") for path in needs), default=0)
        tree = Path(name).joinpath(*["golden-level"] * deep, "tree")
        tree.parent.mkdir(parents=True, exist_ok=True)
        git(root, "worktree", "add", "--quiet", "--detach", "--force", str(tree), commit)
        try:
            link_needs(root, tree, needs)
            yield tree, commit
        finally:
            git(root, "worktree", "remove", "--force", str(tree))


def link_needs(root: Path, tree: Path, needs: Sequence[str]) -> None:
    """Links what runs read and git does not track from a checkout into a worktree of it.

    Args:
        root: the checkout.
        tree: the worktree.
        needs: paths relative to both.
    """
    for path in needs:
        _link(root, tree, os.path.normpath(path))


def _link(root: Path, tree: Path, path: str) -> None:
    source, target = root / path, tree / path
    outside = not source.resolve().is_relative_to(root.resolve())
    if Path(path).is_absolute() or target.exists() or not source.exists():
        return
    if not outside and git(root, "ls-files", "--", path):
        return  # the revision does without it: that is what it is
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())


def copied_gate(folder: Path) -> Path:
    """Copies the running `validation` package into a folder, which can then be searched for it."""
    shutil.copytree(
        Path(__file__).parents[1],
        folder / "validation",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return folder


def revision_path(root: Path, tree: Path, gate: Path) -> str:
    """Builds PYTHONPATH for processes that run a worktree's code under a copy of the gate.

    What Python searches inside of the repository (the user's PYTHONPATH, folders of an editable
    installation) is searched at the same place in the worktree.

    Args:
        root: the repository.
        tree: the worktree.
        gate: folder of the copied `validation`.

    Returns:
        Folders, joined by the system's separator.
    """
    inherited = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    root, parts = root.resolve(), [str(gate), *search_path(tree)]
    for part in (*inherited, *filter(None, sys.path)):
        folder = Path(part).resolve()
        if folder.is_relative_to(root) and not _installed(folder, root):
            parts.append(str(tree / folder.relative_to(root)))
        elif part in inherited:
            parts.append(str(folder))
    return python_path(None, dict.fromkeys(parts))


def code_of(root: Path) -> list[Path]:
    """Files of a checkout from which this process has imported modules.

    An environment inside of the checkout is no code of it.
    """
    root = root.resolve()
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    paths = {Path(file).resolve() for file in files if file}
    return sorted(p for p in paths if p.is_relative_to(root) and not _installed(p, root))


def _installed(path: Path, root: Path) -> bool:
    """Whether a path inside of a checkout is an environment's."""
    if {"site-packages", "dist-packages"} & {*path.relative_to(root).parts}:
        return True
    prefix = Path(sys.prefix).resolve()
    return prefix != root and prefix.is_relative_to(root) and path.is_relative_to(prefix)
