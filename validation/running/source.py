"""The source tree and its digest, since commits vanish in squash merges."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

# What the harness and Python leave behind, whether git ignores it or not.
LEFTOVERS = ("runs/", "reports/", "mlruns/")
# Recorded results and prose: what they hold does not change what a run computes.
NOT_SOURCE = ("goldens/", "docs/", "benchmarks/results/")


class RepositoryError(RuntimeError):
    """No repository, or git refused."""


def find_root(start: Path | None = None) -> Path:
    """Finds the repository around a folder.

    Args:
        start: the folder; the working directory when None.

    Returns:
        The repository's root.

    Raises:
        RepositoryError: not inside a git repository.
    """
    folder = (start or Path.cwd()).resolve()
    for candidate in (folder, *folder.parents):
        if (candidate / ".git").exists():
            return candidate
    raise RepositoryError(f"{folder}: not inside a git repository; run golden from your checkout")


def git(root: Path, *words: str) -> str:
    """Runs git.

    Args:
        root: working directory of git.
        *words: the command and its arguments.

    Returns:
        What git printed.

    Raises:
        RepositoryError: git failed; the message has its own.
    """
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RepositoryError(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def is_leftover(name: str) -> bool:
    """Whether a file is no part of a source tree, tracked or not."""
    return name.startswith(LEFTOVERS) or "__pycache__/" in name


def listed_files(root: Path) -> list[str]:
    """Files that git tracks, and untracked ones it does not ignore; deleted ones included."""
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return sorted({name for name in listed.split("\0") if name and not is_leftover(name)})


def content_of(path: Path) -> bytes | None:
    """What a file holds; a link's target before it, a submodule's commit; None of what is gone."""
    if (path / ".git").exists():
        return git(path, "rev-parse", "HEAD").encode()
    link = str(path.readlink()).encode() + b"\0" if path.is_symlink() else b""
    if path.is_file():
        return link + path.read_bytes()
    return link or None


def tree_digest(root: Path, without: Sequence[str] = ()) -> str:
    """Digests names and contents of the whole working tree, outside `NOT_SOURCE`.

    Args:
        root: the repository.
        without: files, and folders as `tests/`, to leave out besides.

    Returns:
        BLAKE2b-128, in hexadecimal.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for name in listed_files(root):
        content = content_of(root / name)
        if content is None or name.startswith((*NOT_SOURCE, *without)):
            continue
        hasher.update(f"{name}\0{len(content)}\0".encode())
        hasher.update(content)
    return hasher.hexdigest()


def commit(root: Path) -> str | None:
    """The commit checked out, or None before the first."""
    try:
        return git(root, "rev-parse", "HEAD").strip()
    except RepositoryError:
        return None


def dirty_files(
    root: Path, outside: Sequence[str] = ("goldens/",), *, staged: bool = True
) -> list[str]:
    """Lists changed and untracked files, but for what the gate's own runs leave.

    Args:
        root: the repository.
        outside: folders whose files do not count.
        staged: whether a file counts that is exactly as it would be committed.

    Returns:
        Paths relative to the repository, sorted.
    """
    status = git(root, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")
    entries = [entry for entry in status.split("\0") if entry and (staged or entry[1] != " ")]
    names = [entry[3:] for entry in entries]
    return sorted(n for n in names if not n.startswith(tuple(outside)) and not is_leftover(n))


def commit_merged(root: Path) -> str | None:
    """The commit that a merge, rebase or cherry-pick under way brings in; None without one."""
    folders = (
        git(root, "rev-parse", "--git-path", f"rebase-{kind}") for kind in ("merge", "apply")
    )
    rebasing = any((root / folder.strip()).exists() for folder in folders)
    names = ["MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD"]
    for name in [*names, "REBASE_HEAD"] if rebasing else names:  # git leaves the last one behind
        try:
            return git(root, "rev-parse", "--verify", "--quiet", name).strip()
        except RepositoryError:
            continue
    return None


def unmerged_files(root: Path) -> dict[str, dict[int, str]]:
    """Files in conflict: path -> stage (1 base, 2 ours, 3 theirs) -> id of the blob."""
    found: dict[str, dict[int, str]] = {}
    for entry in git(root, "ls-files", "--unmerged", "-z").split("\0"):
        if entry:
            facts, _, name = entry.partition("\t")
            _, blob, stage = facts.split()
            found.setdefault(name, {})[int(stage)] = blob
    return found


def blob(root: Path, name: str) -> bytes | None:
    """Content of a git object such as `HEAD:a/file`; None where there is none."""
    done = subprocess.run(
        ["git", "-C", str(root), "cat-file", "blob", name], capture_output=True, check=False
    )
    return None if done.returncode else done.stdout
