"""The source tree and its digest, since commits vanish in squash merges."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

from validation.files import write_atomically

# Recorded results and prose: what they hold does not change what a run computes.
OUTPUTS = ("runs/", "reports/", "mlruns/")
NOT_SOURCE = ("goldens/", "docs/", *OUTPUTS, "benchmarks/results/")


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


def runs_folder(root: Path) -> Path:
    """`runs/`, made if need be, with a file inside that has git ignore it wherever it is."""
    runs = root / "runs"
    ignored = runs / ".gitignore"
    if not ignored.exists():
        write_atomically(ignored, b"*\n")
    return runs


def source_files(root: Path) -> list[str]:
    """Files that git tracks, and untracked ones it does not ignore, outside `NOT_SOURCE`."""
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = {name for name in listed.split("\0") if name}
    return sorted(n for n in names if not n.startswith(NOT_SOURCE) and not _is_bytecode(n))


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
    """Changed and untracked files outside these folders, but for what the gate's own runs leave."""
    status = git(root, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")
    names = [entry[3:] for entry in status.split("\0") if entry]
    left = (*outside, *OUTPUTS)
    return sorted(name for name in names if not name.startswith(left) and not _is_bytecode(name))


def _is_bytecode(name: str) -> bool:
    """Whether Python wrote the file when it imported another, which a repository may not ignore."""
    return "__pycache__" in name.split("/")
