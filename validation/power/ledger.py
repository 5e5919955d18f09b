"""Results of runs that take long, one line of JSON each: an interruption costs what was under way.

A ledger belongs to one state of the code, the goldens and the machine, since a rate over two of
them would be a rate of neither.
"""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from validation.files import DamagedFileError, decode_json, digest, encode_json, jsonable
from validation.goldens.canaries import KEY
from validation.goldens.layout import HEAD
from validation.goldens.store import GoldenStore
from validation.running.reach import without_reach
from validation.running.source import tree_digest
from validation.running.tree import words_of


class StateError(RuntimeError):
    """A ledger that another state of the code, the goldens or the machine has written."""


def state_of(
    root: Path, lane: str, cases: Iterable[str], without: Sequence[str] = ()
) -> dict[str, Any]:
    """Computes digests of what decides the runs: the code, and the heads of the goldens.

    Args:
        root: the repository.
        lane: of the goldens.
        cases: names of those that the runs are compared with.
        without: files or folders of code to leave out, besides what reaches nothing.

    Returns:
        `source`, and `goldens` by case and place.
    """
    store = GoldenStore(root / "goldens")
    heads = {
        "/".join(filter(None, (case, place))): _deciding(store.path(lane, case, place) / HEAD)
        for case in sorted(cases)
        for place in store.places(lane, case)
    }
    source = tree_digest(root, without=(*without_reach(root), *without))
    return {"source": source, "goldens": heads}


def _deciding(path: Path) -> str:
    """Digest of a golden's head without its canaries, which results of runs end up in."""
    content = path.read_bytes()
    try:
        head = decode_json(content, path)
    except DamagedFileError:
        return digest(content)
    return digest(encode_json({k: v for k, v in head.items() if k not in (KEY, "digest")}))


def module_file(plant: str) -> Path | None:
    """The file that a plant, `module:function`, is declared in; None if there is none."""
    spec = importlib.util.find_spec(plant.partition(":")[0])
    return None if spec is None or spec.origin is None else Path(spec.origin)


def own_files(root: Path, plants: Iterable[str], targets: Iterable[str]) -> list[str]:
    """Files of the repository that decide the runs of their own plants, and no other runs.

    A result whose key has the digest of its plant's file needs no more of them: mending a bug does
    not cost the results of the others. Files that another plant's file imports, or that hold a
    case's target, are no such files.

    Args:
        root: the repository.
        plants: `module:function`.
        targets: of the cases, `module:function`.

    Returns:
        Paths relative to the root.
    """
    files = {plant.partition(":")[0]: module_file(plant) for plant in plants}
    own = {name: file for name, file in files.items() if file and file.is_relative_to(root)}
    shared = {target.partition(":")[0] for target in targets}
    shared |= {name for file in own.values() for name in words_of(file.read_bytes(), "")[0]}
    return sorted(str(own[name].relative_to(root)) for name in own.keys() - shared)


class Ledger:
    """A file of JSON lines: first the state, then what each run left.

    Args:
        path: of the file; its folder is made.
        state: see `state_of`.

    Raises:
        StateError: the file is of another state.
    """

    def __init__(self, path: Path, state: Mapping[str, Any]) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = read_lines(path)
        if lines and lines[0] != jsonable({"state": state}):
            raise StateError(
                f"{path}: made by other code or goldens than these; move it away to begin anew"
            )
        self.entries = lines[1:]
        whole = "".join(_line(entry) for entry in lines or [{"state": state}])
        if not path.exists() or path.read_text() != whole:  # new, or its last line is cut short
            path.write_text(whole)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Adds a line: whole, on disk, from any thread."""
        with self._lock, self.path.open("a") as stream:
            self.entries.append(dict(entry))
            stream.write(_line(entry))
            stream.flush()
            os.fsync(stream.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, up to a line that was cut short."""
    found: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(jsonable(entry), sort_keys=True, allow_nan=False) + "\n"
