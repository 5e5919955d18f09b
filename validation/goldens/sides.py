"""Both sides of a merge that accepted a golden, from where git has kept them.

The heads are in the conflict that the driver wrote; without the driver in the stages of git's own
conflict, or, once that is committed, in the parents. Records are found by their digest.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from validation.files import DamagedFileError, decode_json, digest, encode_json, write_atomically
from validation.goldens.golden import Golden
from validation.goldens.layout import FILES, HEAD, staged_name
from validation.goldens.merge import conflicting_heads
from validation.goldens.store import GoldenStore
from validation.running.source import RepositoryError, blob, commit_merged, git, unmerged_files
from validation.trace.storage import read_verified

_STAGES = {"ours": 2, "theirs": 3}


def goldens_of_sides(
    store: GoldenStore, lane: str, case: str, place: str
) -> dict[str, Golden | str]:
    """Restores each side's golden of a merge conflict.

    Args:
        store: the goldens of a repository, one of them in conflict.
        lane: its lane.
        case: its case.
        place: its folder inside the case's.

    Returns:
        Side -> its golden, or why it cannot be restored.
    """
    root, folder = store.folder.parent, store.path(lane, case, place)
    found: dict[str, Golden | str] = {}
    with tempfile.TemporaryDirectory(prefix="golden-sides-") as temporary:
        for side, head in _heads(root, folder / HEAD).items():
            apart = GoldenStore(Path(temporary) / side)
            target = apart.path(lane, case, place)
            try:
                write_atomically(target / HEAD, encode_json(head))
                recorded = head.get("files")
                digests = recorded if isinstance(recorded, Mapping) else {}
                for name in FILES:
                    content = _record(root, folder, name, digests.get(name))
                    if content is not None:
                        write_atomically(target / name, content)
                found[side] = apart.load(lane, case, place)
            except DamagedFileError as error:
                found[side] = str(error).removeprefix(f"{apart.folder}/")
    return found


def _heads(root: Path, path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The heads of both sides, as far as they are JSON."""
    told = conflicting_heads(path)
    if told:
        return {side: told[side] for side in _STAGES if isinstance(told.get(side), Mapping)}
    name = path.relative_to(root).as_posix()
    stages = unmerged_files(root).get(name)
    if stages:
        names = {side: stages.get(stage, "") for side, stage in _STAGES.items()}
    else:
        parents = _parents(root, name)
        names = {side: f"{parent}:{name}" for side, parent in zip(_STAGES, parents, strict=False)}
    heads = {}
    for side, where in names.items():
        content = blob(root, where)
        if content is not None:
            try:
                heads[side] = decode_json(content, path)
            except DamagedFileError:
                continue
    return heads


def _record(root: Path, folder: Path, name: str, expected: object) -> bytes | None:
    """A side's file: what has its digest in the working tree, or in a commit that was merged."""
    if not isinstance(expected, str):
        return None
    names = (name, staged_name(name, expected))
    for path in (folder / name for name in names):
        with contextlib.suppress(DamagedFileError):
            return read_verified(path, expected)
    inside = folder.relative_to(root).as_posix()
    for revision in _revisions(root, f"{inside}/{HEAD}"):
        for candidate in names:
            content = blob(root, f"{revision}:{inside}/{candidate}") or b""
            if digest(content) == expected:
                return content
    return None


def _revisions(root: Path, name: str) -> Iterator[str]:
    """Commits that may hold a side: the two that are merged, then those of the file's history."""
    yield "HEAD"
    merged = commit_merged(root)
    if merged is not None:
        yield merged
    yield from _parents(root, name)
    try:
        yield from git(root, "rev-list", "--full-history", "HEAD", "--", name).split()
    except RepositoryError:  # before the first commit
        return


def _parents(root: Path, name: str) -> list[str]:
    """Parents of the last commit that has changed a file; of a merge, both sides of it."""
    try:
        return git(root, "log", "-1", "--format=%P", "HEAD", "--", name).split()
    except RepositoryError:
        return []
