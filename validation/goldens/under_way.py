"""What an acceptance or a calibration that was killed left, and its repair.

Its audit file is written before its goldens, so that no golden is ever without one. Killed between
the two, it leaves an audit of what never happened. `goldens/under-way.json` is there as long as one
runs, and says what was there before: from it the next one, or `golden health --repair`, sees which
goldens were replaced, and leaves the audit of these alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from validation.files import (
    SCHEMA,
    DamagedFileError,
    check_schema,
    decode_json,
    digest,
    encode_json,
    read_file,
    write_atomically,
)
from validation.goldens.audit_log import ACCEPTED, AUDIT, CALIBRATED, AuditLog
from validation.goldens.environments import in_words
from validation.goldens.golden import environment_of
from validation.goldens.layout import HEAD
from validation.goldens.store import GoldenStore

MARKER = "under-way.json"
_ENTRIES = (ACCEPTED, CALIBRATED)


@contextlib.contextmanager
def under_way(store: GoldenStore) -> Iterator[None]:
    """Around writing an audit file and then its goldens, inside `store.lock()`."""
    repair(store)
    before = {"audit": sorted(_audits(store)), "heads": _heads(store)}
    marker = store.folder / MARKER
    write_atomically(marker, encode_json({"schema": SCHEMA, **before}))
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # the disk may be full: it is found later
            repair(store)
        raise
    marker.unlink()


def repair(store: GoldenStore) -> list[str]:
    """Undoes what never happened, inside `store.lock()`.

    Args:
        store: the goldens.

    Returns:
        What was done, a line each.

    Raises:
        DamagedFileError: `under-way.json` is damaged; nothing was touched.
    """
    done = []
    for audit, kept in _doubtful(store).items():
        document, path = _document(store, audit), store.folder / AUDIT / audit
        if any(kept.values()):
            if kept != {name: document[name] for name in kept}:
                # Under a name of its own: an audit file's name is of its content.
                written = AuditLog(store.folder).write({**document, **kept})
                path.unlink()
                told = "tells of the goldens alone that were replaced"
                done.append(f"{AUDIT}/{written.name}: {told}, in place of {audit}")
        else:
            path.unlink()
            done.append(f"{AUDIT}/{audit}: deleted, none of its goldens was replaced")
    if (store.folder / MARKER).exists():
        (store.folder / MARKER).unlink()
        done.append(f"{MARKER}: deleted")
    return done


def stopped(store: GoldenStore) -> str | None:
    """What a killed acceptance left, as `golden health` says it.

    Args:
        store: the goldens.

    Returns:
        One line; None where none was killed.

    Raises:
        DamagedFileError: `under-way.json` is damaged.
    """
    if not (store.folder / MARKER).exists():
        return None
    told = [
        f"{AUDIT}/{audit} tells of {sum(map(len, kept.values()))} golden(s) that were replaced, "
        f"and of {_told(_document(store, audit)) - sum(map(len, kept.values()))} that were not"
        for audit, kept in _doubtful(store).items()
    ]
    return "an acceptance or calibration was stopped, or runs just now" + "".join(
        f"; {line}" for line in told
    )


def _doubtful(store: GoldenStore) -> dict[str, dict[str, list[Any]]]:
    """Audit files since the marker, with those of their entries whose goldens were replaced."""
    path = store.folder / MARKER
    if not path.exists():
        return {}
    marker = decode_json(read_file(path), path)
    check_schema(marker, path)
    before, known = marker.get("heads"), marker.get("audit")
    if not isinstance(before, dict) or not isinstance(known, list):
        raise DamagedFileError(f"{path}: not what an acceptance writes; look at goldens/audit")
    replaced = _places_replaced(store, before)
    found = {}
    for audit in sorted(_audits(store) - {str(name) for name in known}):
        document = _document(store, audit)
        found[audit] = {
            name: [entry for entry in document[name] if _place(entry) in replaced]
            for name in _ENTRIES
            if isinstance(document.get(name), list)
        }
    return found


def _places_replaced(store: GoldenStore, before: Mapping[str, Any]) -> set[tuple[str, str, str]]:
    """(lane, case, environment) of each golden whose head is another than before."""
    found = set()
    for name, its in _heads(store).items():
        if before.get(name) != its:
            lane, case, *place = name.split("/")
            with contextlib.suppress(DamagedFileError):
                head = store.head(lane, case, "".join(place))
                found.add((lane, case, in_words(environment_of(head["provenance"]))))
    return found


def _place(entry: Any) -> tuple[str, str, str] | None:
    if not isinstance(entry, Mapping):
        return None
    return str(entry.get("lane")), str(entry.get("case")), str(entry.get("environment"))


def _heads(store: GoldenStore) -> dict[str, str]:
    """Digest of each golden's head, by lane, case and place."""
    heads = store.folder.glob(f"*/*/**/{HEAD}")
    return {
        path.parent.relative_to(store.folder).as_posix(): digest(path.read_bytes())
        for path in heads
        if path.is_file()
    }


def _audits(store: GoldenStore) -> set[str]:
    return {path.name for path in (store.folder / AUDIT).glob("*.json")}


def _document(store: GoldenStore, audit: str) -> dict[str, Any]:
    path = store.folder / AUDIT / audit
    return decode_json(read_file(path), path)


def _told(document: Mapping[str, Any]) -> int:
    return sum(len(document[name]) for name in _ENTRIES if isinstance(document.get(name), list))
