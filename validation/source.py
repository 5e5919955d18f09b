"""The source tree and its digest, since commits vanish in squash merges."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

# Recorded results and prose: what they hold does not change what a run computes.
NOT_SOURCE = ("goldens/", "docs/", "runs/", "reports/", "mlruns/", "benchmarks/results/")


class RepositoryError(RuntimeError):
    """No repository, or git refused."""


def find_root(start: Path | None = None) -> Path:
    """The repository around `start` (the working directory).

    Raises:
        RepositoryError: not inside a git repository.
    """
    folder = (start or Path.cwd()).resolve()
    for candidate in (folder, *folder.parents):
        if (candidate / ".git").exists():
            return candidate
    raise RepositoryError(f"{folder}: not inside a git repository; run golden from your checkout")


def git(root: Path, *words: str) -> str:
    """Runs git in `root` and returns its output.

    Raises:
        RepositoryError: git failed; the message has its own.
    """
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RepositoryError(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def source_files(root: Path) -> list[str]:
    """Files that git tracks, and untracked ones it does not ignore, outside `NOT_SOURCE`."""
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return sorted({name for name in listed.split("\0") if name and not name.startswith(NOT_SOURCE)})


def source_digest(root: Path, without: Sequence[str] = ()) -> str:
    """BLAKE2b-128 over names and contents of the source files, as they are in the working tree.

    Args:
        root: the repository.
        without: folders, as `tests/`, to leave out besides `NOT_SOURCE`.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for name in source_files(root):
        if name.startswith(tuple(without)):
            continue
        path = root / name
        if path.is_symlink():
            content = str(path.readlink()).encode()
        elif path.is_file():
            content = path.read_bytes()
        else:  # deleted, but not yet in the index
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


def dirty_files(root: Path, outside: Sequence[str] = ("goldens/",)) -> list[str]:
    """Changed and untracked files outside these folders."""
    status = git(root, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")
    names = [entry[3:] for entry in status.split("\0") if entry]
    return sorted(name for name in names if not name.startswith(tuple(outside)))
