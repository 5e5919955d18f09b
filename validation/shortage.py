"""What a machine lacks when a command fails: room, inodes, a quota, the right to write.

Such a failure says nothing of the code that was run: it is UNFIT.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_ROOM = "free some, with `golden prune` for instance, and repeat the command"
_TODO = {
    errno.ENOSPC: f"no room, or no inode, is left there: {_ROOM}",
    errno.EDQUOT: f"your quota is used up there: {_ROOM}",
    errno.EROFS: "it cannot be written: work on a checkout, and with a TMPDIR, that can",
    errno.EACCES: "you may not: work on a checkout, and with a TMPDIR, that are yours",
}
# No run leaves its trace and its log in less. A run that failed may have given back what it took.
_LEAST_BYTES = 2**20
# How programs that golden starts say it. A lack of permission may be of anything there.
_SAID = {os.strerror(number): number for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)}


def shortage(error: BaseException) -> str | None:
    """What the machine lacks, where that is why something failed: the path, and what to do.

    Args:
        error: what was raised; what it was raised from counts, too, and the end of a run's log.

    Returns:
        One line; None where nothing is known to lack.
    """
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _TODO:
            full = _full_places(Path.cwd(), Path(tempfile.gettempdir()))
            place = cause.filename or next(full, "a file")
            return f"{place}: {cause.strerror}: {_TODO[cause.errno]}"
        said = f"{cause}\n{_text(getattr(cause, 'stderr', None))}"
        for line in said.splitlines():
            number = next((n for text, n in _SAID.items() if text in line), None)
            if number is not None:
                return f"{line.strip()}: {_TODO[number]}"
    return None


def run_lacked(error: Exception, folder: Path) -> str | None:
    """What the machine lacks, where a run left no trace for that.

    Args:
        error: of the run; where not even the log could be written it does not say.
        folder: of the log.

    Returns:
        One line; None where nothing is known to lack.
    """
    places = (folder, Path(tempfile.gettempdir()))
    full = next(_full_places(*places, least=_LEAST_BYTES), None)
    return shortage(error) or (None if full is None else f"{full}: {_TODO[errno.ENOSPC]}")


def _full_places(*folders: Path, least: int = 1) -> Iterator[str]:
    """Which of these folders are on a disk with less room than so many bytes, or without inode."""
    for folder in folders:
        try:
            found = os.statvfs(folder)
        except OSError:
            continue
        root = os.geteuid() == 0  # may use what is reserved
        blocks, inodes = (
            (found.f_bfree, found.f_ffree) if root else (found.f_bavail, found.f_favail)
        )
        if blocks * found.f_frsize < least or (found.f_files and inodes == 0):
            yield str(folder)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, the outermost first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")
