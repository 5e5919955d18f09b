"""Whether what is staged changes goldens alone: `python ci/only_goldens.py`, in a checkout.

A patch that a stranger's code has written is applied to an index before any file of it is written
(`ci/jobs/update.sh propose`, with GIT_INDEX_FILE). Exits with 0, or with 2 and a line for each
thing that is wrong:

- a path outside of `goldens/`, whether it is written or deleted;
- a name that `golden` gives no file, such as `.gitattributes`;
- below `goldens/`, also where the patch did not touch it, anything but a regular file without the
  executable bit: a symbolic link, a submodule, `goldens` itself as a file.

Needs the standard library and git.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

MOST_SHOWN = 20
REGULAR = "100644"
_GONE = "000000"
_KINDS = {"120000": "a symbolic link", "160000": "a submodule", "100755": "executable"}
_NAME = re.compile(r"goldens(/[A-Za-z0-9_][A-Za-z0-9._-]*)+")


def main() -> int:
    """Prints what is wrong; returns 2 if anything is, or if nothing is staged."""
    try:
        changed = list(_changed())
        wrong = sorted({*_wrong_paths(changed), *_wrong_modes()})
    except subprocess.CalledProcessError as error:
        print(f"only_goldens: git: {error.stderr.decode().strip()}", file=sys.stderr)
        return 2
    if not changed:
        wrong = ["nothing is staged: the patch changes no golden"]
    for line in wrong[:MOST_SHOWN]:
        print(f"only_goldens: {line}", file=sys.stderr)
    if len(wrong) > MOST_SHOWN:
        print(f"only_goldens: and {len(wrong) - MOST_SHOWN} more", file=sys.stderr)
    return 2 if wrong else 0


def _changed() -> Iterator[str]:
    """Paths that the index has other than HEAD; a rename is both of its paths."""
    words = _git("diff-index", "--cached", "--no-renames", "--name-only", "-z", "HEAD")
    yield from filter(None, words.split("\0"))


def _wrong_paths(changed: list[str]) -> Iterator[str]:
    for path in changed:
        if not path.startswith("goldens/"):
            yield f"the patch reaches outside goldens/: {_shown(path)}"
        elif not _NAME.fullmatch(path):
            yield f"no name of a golden's file: {_shown(path)}"


def _wrong_modes() -> Iterator[str]:
    """Everything of the index at or below `goldens` that is no plain file."""
    for entry in filter(None, _git("ls-files", "--stage", "-z", "--", "goldens").split("\0")):
        facts, _, path = entry.partition("\t")
        mode = facts.split()[0]
        if mode not in (REGULAR, _GONE):
            yield f"no regular file: {_shown(path)} is {_KINDS.get(mode, f'of mode {mode}')}"
        elif path == "goldens":
            yield "no regular file below goldens/: goldens itself is a file"


def _shown(path: str) -> str:
    """A path on one line, whatever it is made of."""
    return path if path.isascii() and path.isprintable() else ascii(path)


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, check=True)
    return done.stdout.decode(errors="surrogateescape")


if __name__ == "__main__":
    sys.exit(main())
