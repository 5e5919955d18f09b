"""`goldens/audit/` as it is read: which files count, and which were edited since they were written.

A file's name ends with the digest of its content, so that an edited one shows. Each entry names the
golden's former file with its whole digest, so that an edited or deleted one shows even under
another name, from the next entry of its golden on. Files from before that name no former ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from validation.files import (
    DamagedFileError,
    decode_json,
    digest,
    encode_json,
    read_file,
    write_atomically,
)
from validation.schema import parse

AUDIT = "audit"
ACCEPTED, CALIBRATED = "goldens", "calibrated"
_FORMER = "former"
_SHOWN_DIGITS = 8


class _AuditFile(msgspec.Struct, frozen=True):
    """What an audit file says whatever wrote it; each version tells more besides."""

    time: str = ""
    author: str = ""
    reason: str = ""
    goldens: tuple[dict[str, Any], ...] = ()
    calibrated: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Entry:
    """What an audit file says of one golden.

    Attributes:
        path: of the file.
        kind: `ACCEPTED` or `CALIBRATED`.
        fields: of the entry.
        author: who accepted or calibrated; empty where nobody is named.
        reason: why; empty where no reason was given.
        time: when, as an ISO date and time.
        intact: whether the file is as it was written.
    """

    path: Path
    kind: str
    fields: Mapping[str, Any]
    author: str
    reason: str
    time: str
    intact: bool


class AuditLog:
    """The audit files of a folder of goldens, read once.

    Args:
        goldens: the folder of the store.
    """

    def __init__(self, goldens: Path) -> None:
        self.goldens = goldens
        self.folder = goldens / AUDIT
        self.problems: list[tuple[Path, str]] = []
        self._entries: list[Entry] = []
        self._digests: dict[str, str] = {}
        self._read()

    def _read(self) -> None:
        for path in sorted(self.folder.glob("*.json")):
            try:
                content = read_file(path)
                told = parse(decode_json(content, path), _AuditFile, path)
            except DamagedFileError as error:
                self.problems.append((path, str(error)))
                continue
            self._digests[path.name] = digest(content)
            intact = path.stem.endswith(f"-{self._digests[path.name][:_SHOWN_DIGITS]}")
            if not intact:
                text = "was edited: its name is not of its content; restore it from git"
                self.problems.append((path, text))
            who = (told.author.strip(), told.reason.strip(), told.time, intact)
            self._entries += [Entry(path, ACCEPTED, fields, *who) for fields in told.goldens]
            self._entries += [Entry(path, CALIBRATED, fields, *who) for fields in told.calibrated]
        self.problems += _dangling(self._entries, self._digests)

    def of(self, lane: str, case: str) -> Iterator[Entry]:
        """What is on file of a case's goldens, oldest first; edited files included."""
        for entry in self._entries:
            if (entry.fields.get("lane"), entry.fields.get("case")) == (lane, case):
                yield entry

    def former(self, lane: str, case: str) -> dict[str, Any]:
        """What the next entry of a golden says of the file before it; empty for the first one."""
        known = max(self.of(lane, case), key=lambda e: (e.time, e.path.name), default=None)
        if known is None:
            return {}
        name = known.path.name
        return {_FORMER: {"file": name, "digest": self._digests[name]}}

    def write(self, document: Mapping[str, Any]) -> Path:
        """Writes one file, whose name no two branches share; returns its path."""
        content = encode_json(document)
        stamp = str(document["time"]).replace(":", "").replace("-", "")[:15]
        path = self.folder / f"{stamp}-{digest(content)[:_SHOWN_DIGITS]}.json"
        write_atomically(path, content)
        return path


def _dangling(entries: list[Entry], digests: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """Files that later entries name, and that are gone or other than they were."""
    told = set()
    for entry in entries:
        former = entry.fields.get(_FORMER)
        if not isinstance(former, dict):
            continue
        name, recorded = former.get("file"), former.get("digest")
        if digests.get(str(name)) != recorded and name not in told:
            told.add(name)
            gone = "is gone" if str(name) not in digests else "is not what it was"
            text = f"{gone}, as {entry.path.name} names it; restore it from git"
            yield entry.path.parent / str(name), text
