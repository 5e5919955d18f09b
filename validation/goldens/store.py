"""Goldens on disk: `goldens/<lane>/<case>/`, a head that names everything by digest.

Goldens of further environments (`validation.goldens.environments`) are in folders inside of it.

`golden.json` holds provenance, tolerances and the digests of the other files, whose names are
fixed. A golden is replaced by one rename of its head (`validation.goldens.layout`): a reader, or a
machine that dies at any moment, sees the old golden or the new one, whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from validation.files import (
    DamagedFileError,
    check_schema,
    decode_json,
    digest,
    encode_json,
    read_file,
    safe_name,
    unfinished_writes,
    write_atomically,
)
from validation.goldens.canaries import KEY, Canaries
from validation.goldens.environments import distance, folder_name, identity, in_words
from validation.goldens.golden import (
    Golden,
    Head,
    content_of,
    decode_tolerances,
    environment_of,
    head_of,
    verified_head,
)
from validation.goldens.layout import FILES, HEAD, read_file_of, settle, stage, unsettled
from validation.goldens.merge import refuse_conflict
from validation.interrupts import uninterrupted
from validation.limits import MAX_BINARY_BYTES
from validation.run_folder import runs_folder
from validation.schema import parse
from validation.trace.storage import decode_trace, encode_trace


class MissingGoldenError(DamagedFileError):
    """There is no golden of this case on this lane."""


class StaleGoldenError(DamagedFileError):
    """A golden was replaced while a command was working on it."""


class GoldenStore:
    """The goldens of a repository.

    Args:
        folder: usually `goldens/`.
        kept: contents by path, which are then read instead of the folder's; see `keep`.
    """

    def __init__(self, folder: Path, kept: Mapping[Path, bytes] | None = None) -> None:
        self.folder = folder
        self._kept = kept

    @classmethod
    def keep(cls, folder: Path, lane: str) -> GoldenStore:
        """Reads the goldens of a lane into memory; later changes of the files are not seen.

        Args:
            folder: usually `goldens/`.
            lane: the one whose goldens can be read.

        Returns:
            A store that reads from memory.
        """
        found = (folder / lane).rglob("*")
        small = (p for p in found if p.is_file() and p.stat().st_size <= MAX_BINARY_BYTES)
        return cls(folder, {path: path.read_bytes() for path in small})

    def _heads(self, folder: Path, pattern: str) -> list[Path]:
        """Heads below a folder of the store."""
        if self._kept is None:
            return list(folder.glob(f"{pattern}{HEAD}"))
        depth = len(folder.parts) + pattern.count("/") + 1
        return [
            path
            for path in self._kept
            if path.name == HEAD and len(path.parts) == depth and path.is_relative_to(folder)
        ]

    def path(self, lane: str, case: str, place: str = "") -> Path:
        """Returns the folder of a golden, which need not exist.

        Args:
            lane: lane of the golden.
            case: its case.
            place: folder of its environment inside the case's; empty for the first golden.

        Returns:
            The folder.

        Raises:
            ValueError: a name that would leave the store.
        """
        if not (safe_name(lane) and safe_name(case) and (not place or safe_name(place))):
            raise ValueError(f"not a golden's name: {lane}/{case}/{place}")
        return self.folder / lane / case / place

    def lanes(self) -> list[str]:
        """Folders that hold goldens, declared as lanes or not."""
        return sorted(p.name for p in self.folder.glob("*") if p.is_dir() and self.names(p.name))

    def names(self, lane: str) -> list[str]:
        """Cases that have a golden on a lane, damaged ones included."""
        folder = self.folder / lane
        return sorted(
            {p.parent.name for p in self._heads(folder, "*/")}
            | {p.parent.parent.name for p in self._heads(folder, "*/*/")}
        )

    def places(self, lane: str, case: str) -> list[str]:
        """Places of a case's goldens, the first environment first, damaged ones included."""
        folder = self.path(lane, case)
        first = [""] if self._heads(folder, "") else []
        return first + sorted(p.parent.name for p in self._heads(folder, "*/"))

    def place_of(self, lane: str, case: str, environment: Mapping[str, Any]) -> str | None:
        """Where the golden of this very environment is; None where there is none.

        A head that cannot be read is taken for it: it is there to be replaced.
        """
        wanted = identity(environment)
        for place in self.places(lane, case):
            try:
                head = self.head(lane, case, place)
            except DamagedFileError:
                if place in ("", folder_name(environment)):
                    return place
                continue
            if identity(environment_of(head["provenance"])) == wanted:
                return place
        return None

    def free_place(self, lane: str, case: str, environment: Mapping[str, Any]) -> str:
        """Where a golden of a new environment goes."""
        return folder_name(environment) if "" in self.places(lane, case) else ""

    def nearest(self, lane: str, case: str, environment: Mapping[str, Any]) -> Golden:
        """Loads the golden whose environment is nearest to this one.

        Args:
            lane: lane of the golden.
            case: its case.
            environment: of the run that is to be compared.

        Returns:
            The golden.

        Raises:
            MissingGoldenError: the case has none.
            DamagedFileError: one of the case's is damaged, which could have been the nearest.
        """
        return self.load(lane, case, self.nearest_place(lane, case, environment))

    def nearest_head(self, lane: str, case: str, environment: Mapping[str, Any]) -> dict[str, Any]:
        """Reads the head of the golden whose environment is nearest.

        Args:
            lane: lane of the golden.
            case: its case.
            environment: where a run was made.

        Returns:
            The verified head.

        Raises:
            MissingGoldenError: the case has none.
            DamagedFileError: one of the case's is damaged, which could have been the nearest.
        """
        return self.head(lane, case, self.nearest_place(lane, case, environment))

    def nearest_place(self, lane: str, case: str, environment: Mapping[str, Any]) -> str:
        """Finds the place of the golden whose environment is nearest.

        Args:
            lane: lane of the golden.
            case: its case.
            environment: of the run that is to be compared.

        Returns:
            The place; that of the first golden where there is none.

        Raises:
            DamagedFileError: one of the case's is damaged, which could have been the nearest.
        """
        heads = {place: self.head(lane, case, place) for place in self.places(lane, case)}
        return min(
            heads,
            key=lambda p: distance(environment_of(heads[p]["provenance"]), environment),
            default="",
        )

    def head(self, lane: str, case: str, place: str = "") -> dict[str, Any]:
        """Reads the verified head of a golden: everything but the trace's records.

        Args:
            lane: lane of the golden.
            case: its case.
            place: folder of its environment inside the case's; empty for the first golden.

        Returns:
            The head.

        Raises:
            MissingGoldenError: there is none.
            DamagedFileError: it is damaged; the path comes first.
        """
        path = self.path(lane, case, place) / HEAD
        if not self._heads(path.parent, ""):
            raise MissingGoldenError(
                f"{path}: no golden; record one with `golden update {case} --reason TEXT`"
            )
        content = read_file(path) if self._kept is None else self._kept[path]
        refuse_conflict(path, content, case)
        head = decode_json(content, path)
        check_schema(head, path)
        head = verified_head(head, path)
        parse(head, Head, path)
        if (head.get("case"), head.get("lane")) != (case, lane):
            raise DamagedFileError(
                f"{path}: is the golden of {head.get('lane')}/{head.get('case')}"
            )
        if place and place != folder_name(environment_of(head["provenance"])):
            found = in_words(environment_of(head["provenance"]))
            raise DamagedFileError(f"{path}: is the golden of another environment: {found}")
        return head

    def load(self, lane: str, case: str, place: str = "") -> Golden:
        """Reads and verifies a golden.

        Args:
            lane: lane of the golden.
            case: its case.
            place: folder of its environment inside the case's; empty for the first golden.

        Returns:
            The golden.

        Raises:
            MissingGoldenError: there is none.
            DamagedFileError: a file of it is missing or damaged; its path comes first.
        """
        head = self.head(lane, case, place)
        while True:
            try:
                return self.decode(head, place)
            except DamagedFileError:
                # Another process may have replaced the golden since its head was read.
                former, head = head, self.head(lane, case, place)
                if head == former:
                    raise

    def decode(self, head: Mapping[str, Any], place: str = "") -> Golden:
        """Reads and verifies the files that a head names.

        Args:
            head: content of a verified `golden.json`.
            place: folder of its environment inside the case's; empty for the first golden.

        Returns:
            The golden.

        Raises:
            DamagedFileError: a file is missing or damaged; its path comes first.
        """
        folder = self.path(str(head["lane"]), str(head["case"]), place)
        told = parse(head, Head, folder / HEAD)
        files = {name: read_file_of(folder, name, told.files, self._kept) for name in FILES}
        return Golden(
            lane=told.lane,
            trace=decode_trace(told.case, told.provenance, files),
            case_digest=told.case_digest,
            accepted=told.accepted,
            tolerances=decode_tolerances(told.tolerances),
            calibration=told.calibration,
            detectable_effect={n: float(value) for n, value in told.detectable_effect.items()},
            place=place,
            canaries=Canaries.of(told.canaries),
        )

    def refuse_stale(self, lane: str, case: str, place: str, before: Golden | None) -> None:
        """Refuses to write over a golden that is other than it was read. Call it inside `lock()`.

        Its canaries may be other: they are proven again after each write.

        Args:
            lane: of the golden.
            case: of the golden.
            place: of the golden.
            before: as it was read; None where there was none, or a damaged one.

        Raises:
            StaleGoldenError: another process has written it since.
        """
        try:
            now = self.load(lane, case, place)
        except DamagedFileError:
            return  # it is there to be replaced
        if before is None or content_of(now) != content_of(before):
            raise StaleGoldenError(
                f"{self.path(lane, case, place)}: another process has written this golden since "
                "it was read; nothing was written, run this again"
            )

    def save(self, golden: Golden) -> Path:
        """Writes a golden over the former one; returns its folder. Call it inside `lock()`."""
        folder = self.path(golden.lane, golden.case, golden.place)
        recorded = stage(folder, encode_trace(golden.trace))
        head = head_of(golden, recorded)
        if golden.canaries.proofs:
            head[KEY] = golden.canaries.to_json()
        write_atomically(folder / HEAD, encode_json({**head, "digest": digest(encode_json(head))}))
        settle(folder, recorded)
        return folder

    def settle(self, lane: str, case: str, place: str = "") -> list[str]:
        """Finishes an acceptance that stopped.

        Call it inside `lock()`.

        Args:
            lane: lane of the golden.
            case: its case.
            place: folder of its environment inside the case's; empty for the first golden.

        Returns:
            Names of the files that were renamed or deleted.

        Raises:
            DamagedFileError: the golden is missing or damaged; nothing was touched.
        """
        folder = self.path(lane, case, place)
        recorded = self.head(lane, case, place)["files"]
        return settle(folder, recorded) if unsettled(folder, recorded) else []

    def remove(self, golden: Golden) -> None:
        """Deletes a golden, its head first; those of other environments stay."""
        folder = self.path(golden.lane, golden.case, golden.place)
        for path in sorted(folder.iterdir(), key=lambda p: p.name != HEAD):
            if path.is_file():
                path.unlink()
        with contextlib.suppress(OSError):  # other environments' folders are in it
            folder.rmdir()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from accepting at the same time, and signals from stopping it.

        A SIGTERM or Ctrl-C takes effect at the end, so that what belongs together is written
        whole. What a killed process has left unfinished is deleted first.
        """
        # Beside the runs, which git ignores: a lock is nobody's to commit.
        with FileLock(runs_folder(self.folder.parent) / ".goldens.lock"), uninterrupted():
            for path in unfinished_writes(self.folder):
                path.unlink(missing_ok=True)
            yield
